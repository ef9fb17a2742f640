"""Clean a file of conversations on all cores, in the order of the input, resumable at any moment.

Workers clean batches; this process alone decides on duplicates and writes, so that the bytes of
the output depend on the input and the options, never on the number of workers or on interruptions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from checkpoints.regular_files import open_regular
from train.config import ChatTemplate
from train.data.conversations import Conversation, parse_item
from train.data.json_items import read_items
from train.data.partial import PartialRun
from train.data.rules import Note, Reason, Rules, clean_conversation, opening_digest
from train.data.template import TemplateRefused
from train.errors import DataInvalid, OutputConflict

OUTPUT, NOTES, SEEN = "output.jsonl", "notes.jsonl", "seen"
# Conversations per task: 0.1 s of work, 300 KB to send.
_BATCH = 32
# Batches between commits: a kill costs some seconds of work, commits take 1% of the time.
_COMMIT = 16
_DIGEST_BYTES = 16

_Item = tuple[str, int, object]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides on the output's bytes, besides the input."""

    rules: Rules = field(default_factory=Rules)
    max_length: int | None = None
    tokenizer: Path | None = None
    template: ChatTemplate = ChatTemplate.VICUNA


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a worker found: the lines to write, none where it is dropped."""

    id: str
    lines: tuple[bytes, ...]
    notes: tuple[Note, ...]
    opening: bytes = b""


def clean_file(
    source: Path, run: PartialRun, settings: Settings, workers: int, progress: Progress
) -> dict[str, Any]:
    """Clean `source` into the files of `run`, from where it was left; return the counts.

    Raises DataInvalid, or OutputConflict when a worker was killed.
    """
    counts: Counter[str] = Counter(run.state.get("counts", {}))
    reasons: Counter[str] = Counter(run.state.get("reasons", {}))
    seen = _Seen(run)
    num_read = int(run.state.get("num_read", 0))
    num_bytes = 0

    def report(done: int) -> None:
        nonlocal num_bytes
        num_bytes = done
        progress(num_bytes, num_read)

    items = itertools.islice(read_items(source, report), num_read, None)
    for number, outcomes in enumerate(_cleaned(_batches(items), settings, workers), start=1):
        for outcome in outcomes:
            num_read += 1
            _write(seen.judge(outcome), run, counts, reasons)
        if number % _COMMIT == 0:
            run.commit(_state(num_read, counts, reasons))
        progress(num_bytes, num_read)
    state = _state(num_read, counts, reasons)
    run.commit(state)
    return state


def clean_item(item: _Item, settings: Settings) -> Outcome:
    """Clean one item of the input."""
    where, index, content = item
    try:
        name, turns = parse_item(content, index, where)
    except DataInvalid as error:
        given = content.get("id") if isinstance(content, dict) else None
        name = _writable(f"item-{index + 1}" if given is None else str(given))
        note = Note(reason=Reason.NOT_A_CONVERSATION, detail=error.what.removeprefix(where))
        return Outcome(id=name, lines=(), notes=(note,))
    name = _writable(name)
    cleaned = clean_conversation(name, turns, settings.rules)
    if cleaned.conversation is None:
        return Outcome(id=name, lines=(), notes=cleaned.notes)
    parts, notes = [cleaned.conversation], cleaned.notes
    if settings.max_length is not None and settings.tokenizer is not None:
        from train.data.split import split_conversation  # the trainer's libraries, only for this

        try:
            parts = split_conversation(
                cleaned.conversation, settings.tokenizer, settings.max_length, settings.template
            )
        except TemplateRefused as error:
            note = Note(reason=Reason.TEMPLATE, detail=str(error))
            return Outcome(id=name, lines=(), notes=(*notes, note))
        if len(parts) > 1:
            notes = (*notes, Note(reason=Reason.SPLIT, detail=f"{len(parts)} parts"))
    return Outcome(
        id=name,
        lines=tuple(to_line(part) for part in parts),
        notes=notes,
        opening=opening_digest(cleaned.conversation),
    )


def _writable(name: str) -> str:
    # JSON can spell half of a surrogate pair, which UTF-8 cannot.
    return name.encode("utf-8", "replace").decode()


def to_line(conversation: Conversation, **extra: object) -> bytes:
    """Return the conversation as a line of a ShareGPT file."""
    turns = [] if conversation.system is None else [("system", conversation.system)]
    for pair in conversation.pairs:
        turns += [("human", pair.user), ("gpt", pair.assistant)]
    content = {
        "id": conversation.id,
        "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
        **extra,
    }
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; raises DataInvalid when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataInvalid(
            f"{path} cannot be read: {error.strerror}.", "Give the path of a .json or .jsonl file."
        ) from error
    return digest.hexdigest()


class _Seen:
    """Digests of what was kept, in memory (200 bytes per conversation) and in a file to resume."""

    def __init__(self, run: PartialRun) -> None:
        self._file = run[SEEN]
        length = self._file.tell()
        self._file.seek(0)
        content = self._file.read(length)
        self._digests = {
            content[start : start + _DIGEST_BYTES] for start in range(0, length, _DIGEST_BYTES)
        }

    def judge(self, outcome: Outcome) -> Outcome:
        """Return the outcome, dropped where its id or its opening was kept before."""
        if not outcome.lines:
            return outcome
        digest = hashlib.blake2b(outcome.id.encode(), digest_size=_DIGEST_BYTES, person=b"id")
        for found, reason in (
            (digest.digest(), Reason.DUPLICATE_ID),
            (outcome.opening, Reason.DUPLICATE_OPENING),
        ):
            if found in self._digests:
                return Outcome(id=outcome.id, lines=(), notes=(*outcome.notes, Note(reason=reason)))
        for found in (digest.digest(), outcome.opening):
            self._digests.add(found)
            self._file.write(found)
        return outcome


def _write(outcome: Outcome, run: PartialRun, counts: Counter[str], reasons: Counter[str]) -> None:
    for line in outcome.lines:
        run[OUTPUT].write(line)
    kind = "changed" if outcome.lines else "dropped"
    counts["kept" if outcome.lines else "dropped"] += 1
    counts["written"] += len(outcome.lines)
    if not outcome.notes:
        return
    # A dropped conversation counts for what it was dropped for, not for what was tried before.
    notes = outcome.notes if outcome.lines else outcome.notes[-1:]
    counts["changed"] += bool(outcome.lines)
    for note in notes:
        reasons[note.reason.value] += 1
        entry = {"id": outcome.id, **asdict(note)}
        run[NOTES].write(json.dumps([kind, entry], ensure_ascii=False).encode() + b"\n")


def _state(num_read: int, counts: Counter[str], reasons: Counter[str]) -> dict[str, Any]:
    return {"num_read": num_read, "counts": dict(counts), "reasons": dict(sorted(reasons.items()))}


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    items = iter(items)
    while batch := list(itertools.islice(items, _BATCH)):
        yield batch


def _cleaned(
    batches: Iterator[list[_Item]], settings: Settings, workers: int
) -> Iterator[list[Outcome]]:
    clean = partial(_clean_batch, settings=settings)
    if workers == 1:
        yield from map(clean, batches)
        return
    with _pool(workers) as pool:
        waiting: deque[Future[list[Outcome]]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(clean, batch))
                # Bounded: the reader must not run ahead of the workers through the whole file.
                if len(waiting) > 2 * workers + 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OutputConflict(
                "A worker process was killed, perhaps for want of memory.",
                "Start the same command again, with fewer --workers: it goes on where it was.",
            ) from error


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned, not forked: a forked worker holds its siblings' pipes, and outlives a killed parent.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _clean_batch(batch: list[_Item], settings: Settings) -> list[Outcome]:
    return [clean_item(item, settings) for item in batch]
