"""`orchestrate checkpoints export|apply-delta`: a run's weights for others."""

from __future__ import annotations

from pathlib import Path

import click

from checkpoints.casting import RELEASE_DTYPES
from orchestrator.card.card import Release, model_card
from orchestrator.card.provenance import data_used
from orchestrator.card.sections import public_name
from orchestrator.cli.common import examples, progress, say, store_option
from orchestrator.cli.completion import complete_run
from orchestrator.clock import SystemClock
from orchestrator.exporting import (
    export_model,
    find_manifest,
    num_weight_bytes,
    open_run,
    release_dtypes,
)
from orchestrator.view import RunViewer

_FOLDER = click.Path(path_type=Path, file_okay=False)
_MODEL_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command(
    short_help="Write a checkpoint as a Hugging Face folder.",
    epilog=examples("orchestrate checkpoints export vicuna-7b --output vicuna-7b --dtype float16"),
)
@click.argument("run", shell_complete=complete_run)
@click.option(
    "--output", type=_FOLDER, required=True, help="Folder to write; it must not hold a model yet."
)
@click.option("--step", type=click.IntRange(min=0), metavar="N", help="This step's instead.")
@click.option(
    "--dtype",
    type=click.Choice(list(RELEASE_DTYPES)),
    help="Round the weights to this; without it they stay as they were trained.",
)
@click.option(
    "--delta-from",
    "base",
    type=_MODEL_FOLDER,
    help="Write what has to be added to the model in this folder instead of the weights.",
)
@click.option(
    "--whole",
    multiple=True,
    metavar="NAME",
    help="With --delta-from: publish this tensor, which the base lacks, as it is; may be repeated.",
)
@click.option(
    "--data-report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="OUT.report.json of `data prepare`, for the card, if it is not beside the data.",
)
@store_option
def export(
    run: str,
    output: Path,
    step: int | None,
    dtype: str | None,
    base: Path | None,
    whole: tuple[str, ...],
    data_report: Path | None,
    store: str | None,
) -> None:
    """Write RUN's last checkpoint as a Hugging Face folder (safetensors, config, tokenizer).

    Its README.md is a model card: data, recipe, attempts, loss, cost. Fill in the licence and
    look it through before publishing it.
    """
    if whole and base is None:
        raise click.UsageError("--whole goes only with --delta-from.")
    folder, record = open_run(run, store)
    manifest = find_manifest(folder, run, step)
    target = None if dtype is None else RELEASE_DTYPES[dtype]
    base_name = public_name(record.spec.model.base)
    card = model_card(
        RunViewer(folder).look(SystemClock().now()),
        manifest,
        data_used(folder, record, data_report),
        Release(
            dtype=release_dtypes(manifest, target), delta_from=None if base is None else base_name
        ),
    )
    size = num_weight_bytes(manifest)
    if base is None:
        with progress("Exporting", size) as advance:
            names = export_model(folder, record, manifest, output, advance, dtype=target, card=card)
        say(f"Wrote step {manifest.step} to {output}: {', '.join(names)}, and its card.")
        return
    from orchestrator.releasing import export_delta  # numpy: 60 ms

    with progress("Exporting", 2 * size) as advance:
        names = export_delta(
            folder,
            record,
            manifest,
            output,
            (base, base_name),
            advance,
            dtype=target,
            whole=whole,
            card=card,
        )
    say(f"Wrote step {manifest.step} less {base} to {output}: {', '.join(names)}, and its card.")
    say(f"Others restore it: orchestrate checkpoints apply-delta BASE {output} --output DIR")


@click.command(
    "apply-delta",
    short_help="Add a released delta to its base.",
    epilog=examples(
        "orchestrate checkpoints apply-delta llama-7b vicuna-7b-delta --output vicuna-7b"
    ),
)
@click.argument("base", type=_MODEL_FOLDER)
@click.argument("delta", type=_MODEL_FOLDER)
@click.option(
    "--output", type=_FOLDER, required=True, help="Folder to write; it must not hold a model yet."
)
def apply_delta(base: Path, delta: Path, output: Path) -> None:
    """Add DELTA to BASE: the released weights, bit for bit, each checked by its sha256.

    Another base is refused before anything is written.
    """
    # numpy: 60 ms
    from checkpoints.delta import DELTA_STEM, num_base_bytes, num_bytes
    from orchestrator.releasing import restore_release

    size = num_base_bytes(base, delta) + num_bytes(delta, DELTA_STEM)
    with progress("Adding", size) as advance:
        names = restore_release(base, delta, output, advance)
    say(f"Wrote {output}: {', '.join(names)}; every tensor has the sha256 of the release.")
