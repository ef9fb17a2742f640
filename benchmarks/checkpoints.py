"""Saving and loading a sharded training state on a real S3 server, beside what others do.

Run: python -m benchmarks.checkpoints [--sizes 0.5 2] [--rounds 5] [--variants ours raw] [--json]

Two gloo ranks and the server (SeaweedFS) share this machine, and the server takes most of its
processor time: only ratios within a round mean something elsewhere. Every round runs each variant
once, in an order that rotates. Each run is told on standard error as it ends, as a line of JSON.
The server's data, and the file of torch_save, go to TMPDIR.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from botocore.exceptions import BotoCoreError, ClientError

from benchmarks.checkpointing.jobs import (
    ASYNC_VARIANTS,
    DOWNLOAD,
    PACKAGES,
    UPLOAD,
    Act,
    Figures,
    Job,
    Variant,
)
from benchmarks.checkpointing.runs import RunFailed, measure_inside, measure_save
from benchmarks.checkpointing.server import Server, serve
from benchmarks.checkpointing.summary import (
    SAVE_COLUMNS,
    STEP_COLUMNS,
    Check,
    Row,
    check,
    summary_line,
    table,
)
from benchmarks.machine import describe_machine, num_cores

_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeResult:
    """What was measured at one size; `probe` holds the seconds of each client tried for `raw`."""

    requested_gb: float
    rows: list[Row]
    checks: list[Check]
    probe: Figures

    @property
    def state_gb(self) -> float:
        """Return the size that was saved, which differs a little from what was asked for."""
        saved = [row.median("state_gb") for row in self.rows if row.rounds]
        return saved[0] if saved else self.requested_gb


def main() -> None:
    """Measure, print, and exit 1 if any variant failed."""
    arguments = _parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the server ends too
    variants = [variant for variant in arguments.variants if _is_installed(variant)]
    act = Act.STEPS if arguments.steps else Act.SAVE
    with serve() as server:
        results = [
            _measure_size(server, act, size, variants, arguments.rounds) for size in arguments.sizes
        ]
    if arguments.json:
        print(json.dumps(_document(results), indent=2))
    else:
        for line in _report(results, STEP_COLUMNS if arguments.steps else SAVE_COLUMNS):
            print(line)
    failed = [row for result in results for row in result.rows if row.errors]
    sys.exit(1 if failed or len(variants) < len(arguments.variants) else 0)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoints", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[0.5, 2.0], metavar="GB", help="of state"
    )
    parser.add_argument("--rounds", type=int, default=5)
    names = [variant.value for variant in Variant]
    parser.add_argument(
        "--variants", nargs="+", choices=names, metavar="NAME", help=" ".join(names)
    )
    parser.add_argument("--steps", action="store_true", help="time training steps beside saves")
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    parsed = parser.parse_args(arguments)
    possible = ASYNC_VARIANTS if parsed.steps else tuple(Variant)
    parsed.variants = [v for v in possible if v.value in (parsed.variants or names)]
    if not parsed.variants:
        parser.error("--steps is about variants that save while training goes on")
    return parsed


def _is_installed(variant: Variant) -> bool:
    package = PACKAGES.get(variant)
    if package is None or importlib.util.find_spec(package) is not None:
        return True
    _say(f"{variant.value}: needs {package}; run: pip install -c constraints.txt -e '.[bench]'")
    return False


def _measure_size(
    server: Server, act: Act, size_gb: float, variants: list[Variant], num_rounds: int
) -> SizeResult:
    job = Job(act=act, variant=Variant.RAW, state_bytes=round(size_gb * 1e9))
    rows = {variant: Row(variant=variant) for variant in variants}
    probe: Figures = {}
    if Variant.RAW in rows:
        probe = _try(server, job.model_copy(update={"act": Act.PROBE}), 0, rows[Variant.RAW])
    if probe:
        fastest = {"upload_client": _fastest(probe, UPLOAD)}
        fastest["download_client"] = _fastest(probe, DOWNLOAD)
        job = job.model_copy(update=fastest)
    elif Variant.RAW in variants:
        variants = [variant for variant in variants if variant is not Variant.RAW]
    for number in range(1, num_rounds + 1):
        first = (number - 1) % max(1, len(variants))
        for variant in variants[first:] + variants[:first]:
            figures = _try(
                server, job.model_copy(update={"variant": variant}), number, rows[variant]
            )
            if figures:
                rows[variant].rounds[number] = figures
    checks = check(rows.values(), num_cores()) if act is Act.SAVE else []
    return SizeResult(requested_gb=size_gb, rows=list(rows.values()), checks=checks, probe=probe)


def _try(server: Server, job: Job, number: int, row: Row) -> Figures:
    """Return the figures of one run and say them at once; none where it failed."""
    what = {"requested_gb": job.state_bytes / 1e9, "round": number, "variant": row.variant.value}
    try:
        with server.bucket() as bucket:
            job = job.model_copy(update={"bucket": bucket})
            measure = measure_save if job.act is Act.SAVE else measure_inside
            figures = measure(server, job)
    except (RunFailed, BotoCoreError, ClientError) as error:
        row.errors.append(f"round {number}: {error}")
        _say(json.dumps({**what, "error": str(error)}))
        if isinstance(error, RunFailed) and error.log:
            _say(error.log)
        return {}
    _say(json.dumps({**what, **{name: round(value, 4) for name, value in figures.items()}}))
    return figures


def _fastest(probe: Figures, direction: str) -> str:
    seconds = {name: value for name, value in probe.items() if name.startswith(direction)}
    return min(seconds, key=seconds.__getitem__).removeprefix(direction)


def _report(results: list[SizeResult], columns: dict[str, bool]) -> Iterator[str]:
    for result in results:
        yield f"{result.state_gb:.3g} GB of state, medians (min..max) of the rounds"
        yield from table(result.rows, columns)
        if result.probe:
            yield (
                f"raw: {_fastest(result.probe, UPLOAD)} up, {_fastest(result.probe, DOWNLOAD)} down"
            )
        yield from (
            f"{c.name}: {c.value:.3g}, target at most {c.target:.3g}"
            + (f"; {c.note}" if c.note else "")
            for c in result.checks
        )
        if result.checks:
            yield summary_line(result.checks)
        yield ""


def _document(results: list[SizeResult]) -> dict[str, object]:
    return {
        "schema_version": _SCHEMA_VERSION,
        "machine": describe_machine("torch"),
        "rows": [
            {"state_gb": result.state_gb, **_row_record(row)}
            for result in results
            for row in result.rows
        ],
        "probes": [{"state_gb": result.state_gb, **result.probe} for result in results],
        "checks": [
            {**asdict(one), "met": one.is_met} for result in results for one in result.checks
        ],
    }


def _row_record(row: Row) -> dict[str, object]:
    first = next(iter(row.rounds.values()), {})
    return {
        "variant": row.variant.value,
        **{figure: row.median(figure) for figure in first if figure != "state_gb"},
        "rounds": [{"round": number, **figures} for number, figures in row.rounds.items()],
        "errors": row.errors,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
