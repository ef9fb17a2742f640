"""The parts of a model card that come from the run folder: folds over facts, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from checkpoints.manifest import Manifest
from orchestrator.card.provenance import CleaningReport, DataUsed, Samples
from orchestrator.clock import show_duration
from orchestrator.redact import redact
from orchestrator.report import cost_document
from orchestrator.view import RunView
from train.spool import Resumed, Step

# Of the spec's sections, what decides the numbers of the model.
_RECIPE = ("model", "data", "train")


def data_section(view: RunView, data: DataUsed) -> str:
    """Say where the data is from, how much was trained on and what was dropped before."""
    spec = view.record.spec
    lines = [
        "## Data",
        f"Conversations in ShareGPT's schema from `{public_name(spec.data.train)}`.",
    ]
    if data.train is not None:
        lines.append(f"Trained on {_amount(data.train)}.")
    if data.evaluation is not None:
        lines.append(f"Kept apart for the evaluation loss: {_amount(data.evaluation)}.")
    lines += _cleaning_lines(data.cleaning)
    return "\n".join(lines)


def recipe_section(view: RunView, manifest: Manifest) -> str:
    """List every hyperparameter, and what attempts computed on."""
    spec = view.record.spec.model_dump(mode="json", include=set(_RECIPE))
    spec["model"]["base"] = public_name(spec["model"]["base"])
    spec["data"]["train"] = public_name(spec["data"]["train"])
    steps = _steps(view, manifest)
    resumed = [one.record for one in view.measured if isinstance(one.record, Resumed)]
    rows = [
        ("steps", f"{manifest.step} of {view.record.num_steps}"),
        *(
            (f"{section}.{key}", _value(value))
            for section in _RECIPE
            for key, value in spec[section].items()
        ),
        (f"tokens in {len(steps):,} recorded steps", f"{sum(one.num_tokens for one in steps):,}"),
        ("of which trained", f"{sum(one.num_trained_tokens for one in steps):,}"),
        ("ranks", _each(one.world_size for one in view.state.launches if one.attempt)),
        ("devices", _each(one.device for one in resumed)),
        ("digest of all that decides rounding", _each(one.numerics for one in resumed)),
        ("master weights, optimizer and reductions", "fp32"),
        ("code", f"spot-orchestrator {view.record.code_version}"),
    ]
    return "\n".join(["## Recipe", "", *_table(("what", "value"), rows)])


def training_section(view: RunView, manifest: Manifest) -> str:
    """List the attempts, and say what was trained again and whether it was equal."""
    launches = [one for one in view.state.launches if one.attempt is not None]
    replay = view.replay
    lines = [
        "## How it was trained",
        f"{len(launches)} attempts, {view.state.num_preemptions} preemptions"
        f"{', on simulated nodes of one machine' if view.record.simulated else ''}.",
    ]
    if replay.num_steps:
        equal = replay.num_steps - len(replay.differing)
        lines.append(
            f"{replay.num_steps} steps were trained again after a preemption and compared with "
            f"their first record: {equal} equal bit for bit."
        )
    rows = [
        (
            one.attempt,
            f"{one.offer.cloud} {one.offer.region} {one.offer.market.value}",
            f"{one.num_nodes} x {one.offer.accelerators}",
            one.world_size or "?",
            one.resumed_step or 0,
            "goes on" if one.reason is None else one.reason.value,
        )
        for one in launches
    ]
    names = ("attempt", "where", "nodes", "ranks", "from step", "end")
    return "\n".join([*lines, "", *_table(names, rows), "", *_loss_lines(view, manifest)])


def cost_section(view: RunView) -> str:
    """Return the bill of `orchestrate cost`, marked where it was simulated."""
    document = cost_document(view)
    simulated = " (simulated: no such nodes were paid for)" if document["simulated"] else ""
    lines = ["## Cost", f"${document['total_usd']:.2f}{simulated}, {_basis(document)}."]
    if document["savings_fraction"] is not None:
        lines.append(
            f"On demand and undisturbed it would have been ${document['on_demand_usd']:.2f}."
        )
    wall = show_duration(view.goodput.wall)
    lines.append(
        f"It took {wall} of wall time, {document['goodput']['wall']:.0%} of it useful steps."
    )
    rows = [(name, f"${usd:.4f}") for name, usd in document["parts"].items()]
    return "\n".join([*lines, "", *_table(("part", "USD"), rows)])


def public_name(source: str) -> str:
    """Return a source without what only its owner's machine or cloud should know."""
    parts = urlsplit(source)
    if parts.scheme in ("http", "https"):
        return redact(f"{parts.scheme}://{parts.hostname}{parts.path}")
    # Of a path or a bucket only the last name; a hub id has no other form than its own.
    return source if is_hub_id(source) else source.rstrip("/").rpartition("/")[2]


def is_hub_id(source: str) -> bool:
    """Say whether a model's or data's name is `owner/name` on the Hugging Face hub."""
    return source.count("/") == 1 and not source.startswith(("/", ".", "~"))


def _amount(samples: Samples) -> str:
    return (
        f"{samples.num_conversations:,} conversations ({samples.num_samples:,} samples, "
        f"{samples.num_tokens:,} tokens), prepared as sha256 `{samples.sha256}`"
    )


def _cleaning_lines(report: CleaningReport | None) -> list[str]:
    if report is None:
        return ["How it was cleaned before is not recorded."]
    dropped = sorted(report.reasons.items(), key=lambda item: -item[1])
    reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in dropped)
    return [
        f"`orchestrate data prepare` kept {report.num_kept:,} of {report.num_read:,} conversations "
        f"(sha256 of its input `{report.input_sha256}`), dropped {report.num_dropped:,} and "
        f"changed {report.num_changed:,}{f': {reasons}' if reasons else ''}."
    ]


def _loss_lines(view: RunView, manifest: Manifest) -> list[str]:
    steps, lines = _steps(view, manifest), []
    if steps:
        first, last = steps[0], steps[-1]
        lines.append(
            f"Loss per trained token: {first.loss:.4f} at step {first.step}, "
            f"{last.loss:.4f} at step {last.step}."
        )
    made = [one for one in view.evaluations if one.step <= manifest.step]
    if made:
        shown = ", ".join(f"{one.loss:.4f} after step {one.step}" for one in made)
        lines.append(f"On the conversations kept apart: {shown}.")
    return lines


def _steps(view: RunView, manifest: Manifest) -> list[Step]:
    """Return the records of the steps that led to this checkpoint, as far as they were kept."""
    return [view.latest[number] for number in sorted(view.latest) if number <= manifest.step]


def _basis(document: dict[str, Any]) -> str:
    shares = [f"${usd:.2f} of it {name}" for name, usd in document["basis"].items() if usd]
    return ", ".join(shares) or "nothing was charged"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _each(values: Iterable[object]) -> str:
    known = dict.fromkeys(str(one) for one in values if one is not None)
    return ", ".join(known) or "not recorded"


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [names, ["---"] * len(names), *rows]
    return [f"| {' | '.join(str(cell).replace('|', ' ') for cell in line)} |" for line in lines]
