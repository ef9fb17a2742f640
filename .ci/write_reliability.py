"""Write the table of docs/reliability.md from what fault tests have recorded.

Run: FAULT_RECORD=faults.jsonl pytest ..., then python .ci/write_reliability.py faults.jsonl
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
_HEADER = (
    "| fault | what was injected | times | committed steps lost | dollars unaccounted "
    "| orphans | again by |",
    "|---|---|--:|--:|--:|--:|---|",
)


def render(lines: Iterable[str]) -> str:
    """Return the table; rows of the same test and fault are added up."""
    sums: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        row = json.loads(line)
        sums.setdefault((row["fault"], row["what"], row["command"]), []).append(row)
    keys = sorted(sums, key=lambda key: (int(re.findall(r"\d+", key[0])[0]), key[1]))
    return "\n".join([*_HEADER, *(_row(key, sums[key]) for key in keys)])


def _row(key: tuple[str, str, str], rows: list[dict[str, Any]]) -> str:
    fault, what, command = key
    cells = [
        fault,
        what,
        str(sum(row["injected"] for row in rows)),
        *(_sum(rows, name) for name in ("committed_steps_lost", "usd_unaccounted", "orphans")),
        f"`{command}`",
    ]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _sum(rows: list[dict[str, Any]], name: str) -> str:
    """Add up what was measured; a dash where it was not at stake."""
    values = [Decimal(row[name]) for row in rows if row[name] is not None]
    return f"{sum(values).normalize():f}" if values else "–"


def main(record: Path) -> None:
    """Put the table between the page's markers."""
    page = TARGET.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = render(record.read_text(encoding="utf-8").splitlines())
    TARGET.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
