"""The README's figures, drawn from the tables in docs/ that benchmarks have printed.

Run: python -m benchmarks.plots     A test compares the files in docs/figures with what this draws.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "figures"

WIDTH = 760
_OURS, _OTHER, _TEXT, _FAINT = "#005a9c", "#b4bcc6", "#1b2430", "#5b6673"
_POLICIES = {
    "greedy": "#b4bcc6",
    "uniform_progress": "#d55e00",
    "skynomad": "#009e73",
    "auto": _OURS,
}
_COSTS = (1.0, 1.3)


def draw() -> dict[str, str]:
    """Return each figure by its file's name."""
    checkpoints = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    policy = (DOCS / "policy.md").read_text(encoding="utf-8")
    saves = read_table(checkpoints, after="**0.5 GB of state**")
    markets = read_table(policy, after="## Figures")
    return {"checkpoints.svg": _draw_saves(saves), "policy.svg": _draw_policies(markets)}


def read_table(page: str, after: str) -> list[dict[str, str]]:
    """Return the rows of the first table behind a text, by the names of its columns."""
    lines = page[page.index(after) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    names = _cells(lines[start])
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, _cells(line), strict=True)))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip().strip("|").split("|")]


def _number(cell: str) -> float:
    found = re.match(r"[\d.]+", cell)
    assert found is not None, cell
    return float(found[0])


def _draw_saves(rows: list[dict[str, str]]) -> str:
    """Three panels of bars, a variant a line; seconds."""
    panels = {"stall s": "training waits", "durable s": "durable after", "load s": "loaded in"}
    left, gap, top, line = 200, 56, 62, 24
    wide = (WIDTH - left - gap * len(panels)) / len(panels)
    body = [_title("Saving and loading 0.5 GB of training state, S3 server on the same two cores")]
    for number, row in enumerate(rows):
        name = row[""]
        body.append(_text(left - 10, top + number * line + 13, name, anchor="end"))
    for place, (column, title) in enumerate(panels.items()):
        x = left + place * (wide + gap)
        longest = max(_number(row[column]) for row in rows)
        body.append(_text(x, top - 12, f"{title}, seconds", fill=_FAINT))
        for number, row in enumerate(rows):
            seconds, y = _number(row[column]), top + number * line
            bar = max(1.0, seconds / longest * wide)
            fill = _OURS if row[""] == "ours" else _OTHER
            body.append(f'<rect x="{x:.1f}" y="{y}" width="{bar:.1f}" height="17" fill="{fill}"/>')
            body.append(_text(x + bar + 5, y + 13, row[column].split()[0]))
    return _svg(body, top + len(rows) * line + 12)


def _draw_policies(rows: list[dict[str, str]]) -> str:
    """A dot for each policy, a group of markets a line; cost over the least possible."""
    title = "Cost of a job over the least possible, replayed on recorded spot markets (simulated)"
    left, top, line = 178, 92, 30
    groups = [row for row in rows if _market(row).startswith("all, ")]
    bottom = top + len(groups) * line
    body = [_title(title), *_legend(left, 58)]
    for tick in range(4):
        cost = _COSTS[0] + tick * 0.1
        x = _x(cost, left)
        body.append(f'<path d="M{x:.1f} {top - 14}V{bottom - 10}" stroke="#e3e7ec"/>')
        body.append(_text(x, bottom + 8, f"{cost:.1f}", anchor="middle", fill=_FAINT))
    for number, row in enumerate(groups):
        y = top + number * line
        name = f"{_market(row).removeprefix('all, ')}, start {row['start']}"
        body.append(_text(left - 12, y + 5, name, anchor="end"))
        costs = {policy: _number(row[policy]) for policy in _POLICIES}
        ends = (_x(min(costs.values()), left), _x(max(costs.values()), left))
        body.append(f'<path d="M{ends[0]:.1f} {y}H{ends[1]:.1f}" stroke="#d3d9e0"/>')
        for policy, cost in costs.items():
            body.append(_dot(_x(cost, left), y, policy))
    return _svg(body, bottom + 20)


def _market(row: dict[str, str]) -> str:
    return next(iter(row.values()))


def _x(cost: float, left: int) -> float:
    low, high = _COSTS
    return left + (cost - low) / (high - low) * (WIDTH - left - 40)


def _legend(left: int, y: int) -> Iterator[str]:
    for place, policy in enumerate(_POLICIES):
        x = left + place * 140
        yield _dot(x + 6, y - 5, policy)
        yield _text(x + 18, y, policy)


def _dot(x: float, y: float, policy: str) -> str:
    radius = 7 if policy == "auto" else 5
    return f'<circle cx="{x:.1f}" cy="{y}" r="{radius}" fill="{_POLICIES[policy]}"/>'


def _title(text: str) -> str:
    shown = f'<text x="16" y="26" font-size="15" font-weight="600">{escape(text)}</text>'
    return f"<title>{escape(text)}</title>{shown}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = _TEXT) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'


def _svg(body: Sequence[str], height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="12.5" fill="{_TEXT}">'
    )
    # A ground of its own: pages may be dark.
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *body, "</svg>", ""])


def main() -> None:
    """Write the figures."""
    FIGURES.mkdir(exist_ok=True)
    for name, figure in draw().items():
        (FIGURES / name).write_text(figure, encoding="utf-8")
        print(FIGURES / name)


if __name__ == "__main__":
    main()
