"""Add up the lines of a bill, exactly: whatever their order, the sum of the kinds is their sum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache

from orchestrator.billing.kinds import BillKind
from orchestrator.errors import InputError
from orchestrator.ledger.facts import BillRead

_MICRO_USD = Decimal("0.000001")
# Sums of amounts within the limits never round: 12 digits before the point, 40 behind it.
_EXACT = Context(prec=100)
_LARGEST, _FINEST = 12, -40
# What lies outside is a slip, and calendars end.
_YEARS = range(2000, 2200)
DAY = timedelta(days=1)
_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a line of a bill, or a credit in it, is for and costs."""

    kind: BillKind
    usd: Decimal
    hours: Decimal | None = None
    """Instance hours, where the line counts them."""
    ends_on: date | None = None
    """The day after its last, where it says so."""
    is_final: bool = False


@dataclass(slots=True)
class Tally:
    """What one cloud billed for one run, as far as it was read."""

    cloud: str
    sources: list[str] = field(default_factory=list)
    usd: dict[BillKind, Decimal] = field(default_factory=dict)
    hours: Decimal | None = None
    num_lines: int = 0
    is_final: bool = True
    start: date | None = None
    end: date | None = None

    def cover(self, start: date, end: date) -> None:
        """Note that the bill was read from `start` until before `end`, at the least."""
        self.start = start if self.start is None else min(self.start, start)
        self.end = end if self.end is None else max(self.end, end)

    def add(self, lines: Iterable[Line]) -> None:
        """Count what one line of the bill says; with its credits, on Google Cloud."""
        self.num_lines += 1
        for line in lines:
            kind = BillKind.CREDITS if line.usd < 0 else line.kind
            self.usd[kind] = _EXACT.add(self.usd.get(kind, Decimal(0)), line.usd)
            if kind is BillKind.COMPUTE and line.hours is not None:
                self.hours = _EXACT.add(self.hours or Decimal(0), line.hours)
            self.is_final = self.is_final and line.is_final
            if line.ends_on is not None and self.start is not None:
                self.cover(self.start, line.ends_on)

    def fact(self, read_at: datetime) -> BillRead:
        """Return what was read as a fact; nothing is claimed of days that are yet to come."""
        assert self.start is not None
        assert self.end is not None
        tomorrow = read_at.astimezone(timezone.utc).date() + DAY
        return BillRead(
            cloud=self.cloud,
            source=", ".join(self.sources),
            read_at=read_at,
            start=self.start,
            end=max(self.start + DAY, min(self.end, tomorrow)),
            currency="USD",
            usd={kind: self.usd[kind].quantize(_MICRO_USD) for kind in sorted(self.usd)},
            instance_hours=None if self.hours is None else self.hours.quantize(_MICRO_USD),
            num_lines=self.num_lines,
            is_final=self.is_final,
        )


def amount_of(text: object, what: str) -> Decimal:
    """Return an amount as it is written; raise InputError, naming `what`, if it is none."""
    try:
        found = Decimal(str(text).strip())
    except InvalidOperation:
        found = Decimal("nan")
    if found == 0:
        return Decimal(0)
    if not found.is_finite() or found.adjusted() >= _LARGEST or _exponent(found) < _FINEST:
        raise InputError(f"{what} is no amount: {shown(text)}.", "Export the bill anew.")
    return found


def require_usd(currency: str, what: str) -> None:
    """Raise InputError if a bill is in another currency: the run's is in USD."""
    if currency.strip().upper() != "USD":
        raise InputError(
            f"{what} is in {shown(currency)}, and a run's bill is in USD.",
            "Compare by hand: orchestrate cost RUN --json has the parts.",
        )


@lru_cache(maxsize=4096)
def day_of(text: str) -> date | None:
    """Return the day that an instant of a bill begins with, None if there is none."""
    try:
        found = date.fromisoformat(text.strip()[:10])
    except ValueError:
        return None
    return found if found.year in _YEARS else None


def shown(text: object) -> str:
    """Return what a file holds as it may be printed: on one line, short, and without controls."""
    written = str(text)
    return ascii(written if len(written) <= _SHOWN else f"{written[:_SHOWN]}...")


def _exponent(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0
