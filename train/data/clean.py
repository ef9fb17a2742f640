"""Clean ShareGPT conversations: `python -m train.data.clean IN OUT ...`.

Prints one JSON object on stdout: what was done, or (exit 2) what is wrong. What people read while
it works goes to stderr. The same command again goes on where a killed one was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from train.config import ChatTemplate
from train.data.augment import Augmentation, Method, augment_file
from train.data.cleaning import (
    NOTES,
    OUTPUT,
    SEEN,
    Settings,
    clean_file,
    file_digest,
)
from train.data.endpoint import Budget, Endpoint
from train.data.json_items import EXAMPLE
from train.data.language import check_language
from train.data.partial import PartialRun, locked, remove, write_durably
from train.data.progress import progress, say
from train.data.rules import BLOCKED, Rules
from train.errors import DataInvalid, LibraryMissing, OutputConflict, TrainError

# Raise it whenever the same input and options give other bytes: unfinished runs then start anew.
VERSION = 1
_AUGMENTED = "augmented.jsonl"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of the command."""

    source: Path
    output: Path
    settings: Settings
    workers: int
    force: bool
    augmentation: Augmentation | None = None
    endpoint: str = ""
    budget: Budget = field(default_factory=Budget)

    @property
    def report(self) -> Path:
        """What happened to which conversation."""
        return self.output.with_name(f"{self.output.name}.report.json")

    @property
    def cache(self) -> Path:
        """What the endpoint has answered; it stays, so that nothing is ever paid twice."""
        return self.output.with_name(f"{self.output.name}.answers.jsonl")

    @property
    def partial(self) -> Path:
        """The folder of the unfinished run."""
        return self.output.with_name(f".{self.output.name}.partial")


def run(job: Job) -> dict[str, Any]:
    """Do the job, or what is left of it; return the report without its lists. Raises TrainError."""
    _check_libraries(job.settings)
    if job.source.resolve() == job.output.resolve():
        raise OutputConflict(f"{job.output} is the input.", "Give another path for the output.")
    if not job.output.parent.is_dir():
        raise OutputConflict(f"{job.output.parent} is no folder.", "Create it.")
    identity = {
        "input": str(job.source),
        "input_sha256": file_digest(job.source),
        "options": json.loads(json.dumps(_options(job), default=str)),
    }
    fingerprint = json.dumps([VERSION, identity], sort_keys=True)
    paths = {"output": str(job.output), "report": str(job.report)}
    done = _finished(job, identity)
    if done is not None:
        say(f"{job.output} is there already, of this input and these options.")
        remove(job.partial)
        return done | paths
    try:
        with locked(job.partial):
            report = _run_locked(job, identity, fingerprint)
    except DataInvalid:
        # The input has to change, and then nothing of this can be used.
        remove(job.partial)
        raise
    remove(job.partial)
    return report | paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = _parser().parse_args(arguments)
    if options.with_parent:
        _end_with_stdin()
    job = _job(options)
    try:
        report = run(job)
    except (TrainError, OSError) as failure:
        error = _explained(failure, job)
        problem = {"kind": type(error).__name__, "what": error.what, "next_step": error.next_step}
        sys.stdout.write(json.dumps(problem) + "\n")
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _explained(error: TrainError | OSError, job: Job) -> TrainError:
    if isinstance(error, TrainError):
        return error
    what = f"{error.filename or job.output} cannot be used: {error.strerror}."
    return OutputConflict(what, "Give another path, or make room on the disk.")


def _options(job: Job) -> dict[str, Any]:
    """Return what decides on the output's bytes."""
    options = asdict(job.settings)
    if job.settings.tokenizer is not None:
        options["tokenizer_sha256"] = file_digest(job.settings.tokenizer / "tokenizer.json")
    if job.augmentation is not None:
        options["augmentation"] = asdict(job.augmentation)
        options["budget_usd"] = job.budget.usd
    return options


def _check_libraries(settings: Settings) -> None:
    """Find out before the work, not in the middle of it."""
    try:
        if not settings.rules.keep_html:
            import train.data.page  # noqa: F401  # 0.2 s, only where it is needed
        if settings.tokenizer is not None:
            from train.data.split import encoder_in

            encoder_in(settings.tokenizer, settings.max_length, settings.template)
    except ModuleNotFoundError as error:
        raise LibraryMissing(
            f"Cleaning needs the trainer's libraries ({error}).",
            "Install them: pip install -c constraints.txt -e '.[train]'",
        ) from error
    if settings.rules.language is not None:
        check_language(settings.rules.language)


def _finished(job: Job, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the report of this very job if it is done; raises OutputConflict for another's."""
    if not job.output.exists():
        return None
    try:
        report = json.loads(job.report.read_bytes())
    except (OSError, ValueError):
        report = {}
    is_same = isinstance(report, dict) and all(report.get(key) == identity[key] for key in identity)
    if is_same and report.get("output_sha256") == file_digest(job.output):
        return {key: value for key, value in report.items() if key not in ("dropped", "changed")}
    if job.force:
        return None
    raise OutputConflict(
        f"{job.output} exists, and was not made from this input with these options.",
        "Give another path, or add --force to replace it.",
    )


def _run_locked(job: Job, identity: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    with ExitStack() as stack:
        partial = PartialRun(job.partial, (OUTPUT, NOTES, SEEN), fingerprint)
        stack.callback(partial.close)
        if partial.was_other:
            say("The input or the options have changed since this was interrupted: starting anew.")
        elif partial.state:
            say(f"Going on after {partial.state['num_read']:,} conversations.")
        size = job.source.stat().st_size
        show = stack.enter_context(progress("Cleaning", size))
        state = clean_file(job.source, partial, job.settings, job.workers, show)
    if not state["counts"].get("kept"):
        reasons = ", ".join(f"{name} {count}" for name, count in state["reasons"].items())
        raise DataInvalid(
            f"{job.source} has no conversation to keep ({reasons or 'it is empty'}).",
            f"Give ShareGPT conversations: {EXAMPLE}",
        )
    report = _summary(identity, state)
    output = job.partial / OUTPUT
    if job.augmentation is not None:
        output = job.partial / _AUGMENTED
        report["augmentation"] = _augment(job, job.augmentation, output)
        report["num_written"] += report["augmentation"]["num_added"]
    report["output_sha256"] = file_digest(output)
    notes = job.partial / NOTES
    # The output last: where it is, all is done.
    write_durably(job.report, lambda file: _write_report(file, report, notes))
    output.replace(job.output)
    return report


def _augment(job: Job, plan: Augmentation, output: Path) -> dict[str, Any]:
    """Write the cleaned conversations with their variants; begun anew, it asks for what is new."""
    source = job.partial / OUTPUT
    endpoint = Endpoint(
        job.endpoint, plan.model, job.cache, job.budget, sleep=time.sleep, jitter=random.Random()
    )
    try:
        with (
            output.open("wb") as file,
            progress("Augmenting", source.stat().st_size) as show,
        ):
            num_added = augment_file(source, file, plan, endpoint, show)
            file.flush()
            os.fsync(file.fileno())
    finally:
        endpoint.close()
    if endpoint.is_budget_used:
        say(f"The budget of ${job.budget.usd:g} is used up: the rest is not augmented.")
    if endpoint.num_failed:
        say(f"{endpoint.num_failed} questions got no answer; their conversations stay as they are.")
    return {
        "num_added": num_added,
        "num_asked": endpoint.num_asked,
        "num_failed": endpoint.num_failed,
        "usd": round(endpoint.usd, 6),
        "is_budget_used": endpoint.is_budget_used,
    }


def _summary(identity: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    counts = state["counts"]
    names = ("kept", "dropped", "changed", "written")
    return {
        "schema_version": SCHEMA_VERSION,
        **identity,
        "num_read": state["num_read"],
        **{f"num_{name}": counts.get(name, 0) for name in names},
        "reasons": state["reasons"],
    }


def _write_report(file: BinaryIO, report: dict[str, Any], notes: Path) -> None:
    """Write one JSON document; the lists are copied line by line, for they may be long."""
    file.write(json.dumps(report, indent=1, ensure_ascii=False).removesuffix("\n}").encode())
    for kind in ("dropped", "changed"):
        file.write(f',\n "{kind}": ['.encode())
        for number, entry in enumerate(_entries(notes, kind)):
            file.write(b",\n  " if number else b"\n  ")
            file.write(json.dumps(entry, ensure_ascii=False).encode())
        file.write(b"\n ]")
    file.write(b"\n}\n")


def _entries(notes: Path, kind: str) -> Iterator[dict[str, Any]]:
    with notes.open("rb") as file:
        for line in file:
            found, entry = json.loads(line)
            if found == kind:
                yield entry


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train.data.clean", description=__doc__)
    parser.add_argument("source", type=Path, help="ShareGPT .json or .jsonl file")
    parser.add_argument("output", type=Path, help="JSON lines to write")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--block-phrase", action="append", help="instead of the default ones")
    parser.add_argument("--keep-html", action="store_true", help="answers are Markdown already")
    parser.add_argument("--language", help="ISO 639-1 code of the language to keep")
    parser.add_argument("--max-length", type=int, help="tokens of a part")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json")
    parser.add_argument("--template", type=ChatTemplate, default=ChatTemplate.VICUNA)
    parser.add_argument("--augment", choices=[method.value for method in Method])
    parser.add_argument("--endpoint", default="", help="OpenAI-compatible, as http://HOST/v1")
    parser.add_argument("--model", default="", help="of the endpoint")
    parser.add_argument("--share", type=float, default=0.1, help="of conversations to augment")
    parser.add_argument("--pivot-language", default="German")
    parser.add_argument("--budget-usd", type=float)
    parser.add_argument("--usd-per-million-tokens", type=float, default=0.0)
    parser.add_argument("--force", action="store_true", help="replace another output")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin closes")
    return parser


def _job(options: argparse.Namespace) -> Job:
    phrases = BLOCKED if options.block_phrase is None else tuple(options.block_phrase)
    return Job(
        source=options.source,
        output=options.output,
        settings=Settings(
            rules=Rules(
                blocked=tuple(phrase for phrase in phrases if phrase),
                language=options.language,
                keep_html=options.keep_html,
            ),
            max_length=options.max_length,
            tokenizer=options.tokenizer,
            template=options.template,
        ),
        workers=options.workers,
        force=options.force,
        augmentation=None
        if options.augment is None
        else Augmentation(
            method=Method(options.augment),
            model=options.model,
            share=options.share,
            pivot_language=options.pivot_language,
        ),
        endpoint=options.endpoint,
        budget=Budget(
            usd=options.budget_usd, usd_per_million_tokens=options.usd_per_million_tokens
        ),
    )


def _end_with_stdin() -> None:
    """End when the program that started this one is gone, however it went."""

    def watch() -> None:
        # Not sys.stdin: its lock would be held at the interpreter's end, which is fatal.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
