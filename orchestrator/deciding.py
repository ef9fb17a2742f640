"""Ask the policy, write down question and answer together, and ask again from what was written.

A question is made of facts, prices and the pace of training. Facts are in the ledger anyway; a
decision records how far its author had read them, and the rest, so that it can be replayed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.ledger.facts import Asked, DecisionMade, Entry, QuotedOffer
from orchestrator.ledger.fold import RunState, fold
from orchestrator.ledger.measurements import Measured
from orchestrator.ledger.record import RunRecord
from orchestrator.offers import Offer
from orchestrator.policy.answers import Decision, Drain, Keep, Launch, Stop, Wait
from orchestrator.policy.situation import market_time, seconds_per_step, situation

# Two tasks of one controller ask by turns, and act on their answers a little later.
_NUM_REMEMBERED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    read: Mapping[str, int]
    at: datetime
    pace: float | None
    offers: tuple[QuotedOffer, ...]


class Decider:
    """One process's asking; it remembers the last questions, for the answers that are acted on."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._asked: deque[tuple[Decision, _Question]] = deque(maxlen=_NUM_REMEMBERED)
        # What this writer's earlier records say already.
        self._told: dict[str, int] = {}
        self._told_offers = record.offers
        self._waits_until: datetime | None = None

    def ask(
        self,
        state: RunState,
        measured: Sequence[Measured],
        now: datetime,
        offers: Sequence[Offer] | None = None,
    ) -> Decision:
        """Return the policy's answer at the wall instant `now`."""
        pace = seconds_per_step(measured)
        question = situation(state, pace, now, offers)
        quoted = tuple(QuotedOffer.quote(offer) for offer in question.offers)
        decision = question.decide()
        asked = _Question(read=state.num_by_writer, at=now, pace=pace, offers=quoted)
        self._asked.append((decision, asked))
        return decision

    def made(self, decision: Decision) -> DecisionMade:
        """Return the fact that this was decided, for the caller to record.

        Without a question where the decision is not one of the last answers.
        """
        self._waits_until = decision.until if isinstance(decision, Wait) else None
        question = next((asked for answer, asked in self._asked if answer is decision), None)
        asked = None if question is None else self._tell(question)
        return _fact(decision, self._record, asked)

    def waits_anew(self, now: datetime) -> bool:
        """Say whether waiting is news at the market instant `now`: no wait that was made holds."""
        return self._waits_until is None or self._waits_until < now

    def _tell(self, question: _Question) -> Asked:
        """Return what the records before this one do not say of a question."""
        new = {
            writer: count
            for writer, count in question.read.items()
            if count != self._told.get(writer)
        }
        # By their text: $8.000000 is $8, but a reason shows the digits.
        is_told = _text(question.offers) == _text(self._told_offers)
        self._told |= new
        self._told_offers = question.offers
        return Asked(
            at=question.at,
            seconds_per_step=question.pace,
            read=new,
            offers=None if is_told else question.offers,
        )


def _text(offers: Sequence[QuotedOffer]) -> list[str]:
    return [offer.model_dump_json() for offer in offers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A decision as it was recorded, and as the policy makes it now."""

    recorded: DecisionMade
    again: DecisionMade

    @property
    def is_equal(self) -> bool:
        """Say whether every word and number is the same."""
        return self.recorded == self.again


def replay_decisions(record: RunRecord, entries: Sequence[Entry]) -> Iterator[Replayed]:
    """Yield each decision that recorded its question, and what the policy answers to it now."""
    read: dict[str, dict[str, int]] = {}
    offers: dict[str, tuple[QuotedOffer, ...]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.writer, entry.number)):
        made = entry.body
        if not isinstance(made, DecisionMade) or made.asked is None:
            continue
        asked = made.asked
        known = read.setdefault(entry.writer, {})
        known |= asked.read
        if asked.offers is not None:
            offers[entry.writer] = asked.offers
        state = fold(record, [one for one in entries if one.number < known.get(one.writer, 0)])
        quoted = [one.to_offer() for one in offers.get(entry.writer, record.offers)]
        decision = situation(state, asked.seconds_per_step, asked.at, quoted).decide()
        yield Replayed(recorded=made, again=_fact(decision, record, asked))


def _fact(decision: Decision, record: RunRecord, asked: Asked | None) -> DecisionMade:
    match decision:
        case Keep():
            return DecisionMade(action="keep", why=decision.why, asked=asked)
        case Launch():
            offer = QuotedOffer.quote(decision.offer)
            return DecisionMade(action="launch", why=decision.why, offer=offer, asked=asked)
        case Wait():
            until = market_time(record).wall_at(decision.until)
            return DecisionMade(action="wait", why=decision.why, until=until, asked=asked)
        case Drain():
            return DecisionMade(action="drain", why=decision.why, asked=asked)
        case Stop():
            return DecisionMade(action="stop", why=decision.why, asked=asked)
