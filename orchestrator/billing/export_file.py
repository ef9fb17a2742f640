"""Read files that a cloud exported its bill to: which cloud's, which columns, which rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import chain
from typing import Any

from orchestrator.billing.blocks import name_of, open_lines
from orchestrator.billing.columns import AWS, GOOGLE, TAG_COLUMNS, Columns, Row
from orchestrator.billing.tags import RUN_TAG
from orchestrator.billing.tally import DAY, Tally, day_of, shown
from orchestrator.errors import InputError

_NEXT_STEP = "See docs/cost.md, Checking it against the cloud's bill, for what to export."


def read_exports(sources: Iterable[str], run_id: str) -> list[Tally]:
    """Return what the files say was billed for a run, added up for each cloud.

    Raises:
        InputError: one of them is no export that is understood, or not in USD.
        CheckpointError: a bucket refuses or cannot be reached.
    """
    tallies: dict[str, Tally] = {}
    for source in dict.fromkeys(sources):  # the same file twice is still one bill
        with open_lines(source) as lines:
            _read(lines, name_of(source), run_id, tallies)
    return list(tallies.values())


def _read(lines: Iterator[str], name: str, run_id: str, tallies: dict[str, Tally]) -> None:
    first = next((line for line in lines if line.strip()), "")
    lines = chain([first], lines)
    if first.lstrip().startswith("["):
        raise InputError(f"{name} is one JSON array.", "Export JSON with one object on each line.")
    is_json = first.lstrip().startswith("{")
    columns, rows = (_json_rows if is_json else _csv_rows)(lines, name)
    tally = tallies.setdefault(columns.cloud, Tally(columns.cloud))
    tally.sources.append(name)
    for number, row in rows:
        where = f"{name}, line {number}"
        is_ours = columns.is_of(row, run_id, where)
        day = day_of(str(row.get("start") or ""))
        if day is not None:
            tally.cover(day, day + DAY)
        elif is_ours:
            raise InputError(f"{where} has no day: {shown(row.get('start'))}.", _NEXT_STEP)
        if is_ours:
            tally.add(columns.lines(row, where))


def _csv_rows(lines: Iterator[str], name: str) -> tuple[Columns, Iterator[tuple[int, Row]]]:
    reader = csv.reader(lines)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise _broken(name, reader.line_num, error) from error
    columns, cells = _recognise(header, name)
    return columns, _csv_cells(reader, cells, name)


def _csv_cells(reader: Any, cells: dict[str, int], name: str) -> Iterator[tuple[int, Row]]:  # noqa: ANN401  # csv has no public type
    width = max(cells.values()) + 1
    try:
        for row in reader:
            if len(row) >= width:
                yield reader.line_num, {cell: row[place] for cell, place in cells.items()}
            elif row:
                raise InputError(f"{name}, line {reader.line_num} is cut off.", "Fetch it again.")
    except csv.Error as error:
        raise _broken(name, reader.line_num, error) from error


def _json_rows(lines: Iterator[str], name: str) -> tuple[Columns, Iterator[tuple[int, Row]]]:
    objects = _objects(lines, name)
    first = next(objects)
    # Whatever is empty may be left out of a line, the labels among it.
    columns, _ = _recognise([*first[1], *GOOGLE.names["labels"]], name)

    def rows() -> Iterator[tuple[int, Row]]:
        for number, found in chain([first], objects):
            cells = columns.of(found)
            if missing := columns.missing(cells):
                raise InputError(f"{name}, line {number} lacks {', '.join(missing)}.", _NEXT_STEP)
            values = list(found.values())
            yield number, {cell: values[place] for cell, place in cells.items()}

    return columns, rows()


def _objects(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line, parse_float=Decimal, parse_int=Decimal)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise _broken(name, number, error) from error
        if not isinstance(found, dict):
            raise InputError(f"{name}, line {number} is no JSON object.", _NEXT_STEP)
        yield number, _flat(found)


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    """Name what is in records as BigQuery does: sku.description."""
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict) and name in ("sku", "service"):
            flat |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            flat[name] = value
    return flat


def _recognise(header: list[str], name: str) -> tuple[Columns, dict[str, int]]:
    """Return whose export has these columns, and where what we need is.

    Raises:
        InputError: nobody's, or something is missing, which it names.
    """
    known = [
        (len(set(one.of(header)) - {"tags", "all_tags", "labels"}), one) for one in (AWS, GOOGLE)
    ]
    num_known, columns = max(known, key=lambda one: one[0])
    if not num_known:
        raise InputError(
            f"{name} has neither AWS' columns (lineItem/UnblendedCost, lineItem/UsageType, ...) "
            f"nor Google's (cost, sku.description, ...): it begins {shown(','.join(header[:4]))}.",
            _NEXT_STEP,
        )
    cells = columns.of(header)
    if missing := columns.missing(cells):
        raise InputError(f"{name} has no column {', nor '.join(missing)}.", _NEXT_STEP)
    if not set(TAG_COLUMNS[columns.cloud]) & set(cells):
        raise InputError(*_untagged(columns.cloud, name))
    return columns, cells


def _untagged(cloud: str, name: str) -> tuple[str, str]:
    if cloud == "aws":
        return (
            f"{name} has no column for the tag: resourceTags/user:{RUN_TAG}, or resource_tags.",
            f"Activate {RUN_TAG} in AWS Billing, Cost allocation tags: it counts from then on.",
        )
    return f"{name} has no column labels.", "Export it, too, as JSON: TO_JSON_STRING(labels)."


def _broken(name: str, number: int, error: Exception) -> InputError:
    return InputError(f"{name}, line {number} cannot be read: {error}.", _NEXT_STEP)
