"""What judging costs: estimated before, counted while it goes on, stopped at a budget."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.charges import round_usd
from orchestrator.evaluation.asking import Asker
from orchestrator.evaluation.endpoint import Answered, Reply, Request
from orchestrator.evaluation.report import Spent
from orchestrator.evaluation.verdicts import NoVerdict

_MILLION = 1_000_000
# English in the tokenizers of 2023 and later; a judge's explanation in our prompts.
_BYTES_PER_TOKEN = 4
_USUAL_REPLY_TOKENS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars for a million tokens."""

    prompt_usd: Decimal
    completion_usd: Decimal

    def of(self, prompt_tokens: int, completion_tokens: int) -> Decimal:
        """Return dollars, not rounded."""
        parts = prompt_tokens * self.prompt_usd + completion_tokens * self.completion_usd
        return parts / _MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What judging will take, before it is asked for."""

    requests: int
    known: int
    """Of these, how many were answered before."""
    prompt_tokens: int
    completion_tokens: int
    usd: Decimal | None


class Meter:
    """Asks a judge within a budget; several threads may share it."""

    def __init__(self, asker: Asker, price: Price | None, budget_usd: Decimal | None) -> None:
        self._asker, self._price, self._budget = asker, price, budget_usd
        self._lock = threading.Lock()
        self._prompt_tokens = self._completion_tokens = self._requests = self._asked_now = 0
        self._usd = self._usd_now = self._held = Decimal(0)
        self._counted: set[str] = set()

    def outlook(self, requests: Iterable[Request]) -> Outlook:
        """Estimate what these take: a token is about four bytes, a reply some sentences.

        What is known already counts towards the budget from now on.
        """
        num = known = prompt_tokens = completion_tokens = 0
        for request in {self._asker.key_of(one): one for one in requests}.values():
            num += 1
            reply = self._asker.known(request)
            if reply is not None:
                known += 1
                self._count(request, reply, Decimal(0), is_new=False)
                continue
            prompt_tokens += _num_bytes(request) // _BYTES_PER_TOKEN
            completion_tokens += _USUAL_REPLY_TOKENS
        usd = None
        if self._price is not None:
            usd = round_usd(self._price.of(prompt_tokens, completion_tokens))
        return Outlook(
            requests=num,
            known=known,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            usd=usd,
        )

    def ask(self, request: Request) -> Answered | NoVerdict:
        """Return the reply; NoVerdict.BUDGET where asking might exceed the budget.

        Raises what Asker.ask raises.
        """
        known = self._asker.known(request)
        if known is not None:
            self._count(request, known, Decimal(0), is_new=False)
            return known
        # Every token is a byte at least, so this is the most that it can cost.
        most = self._cost(_num_bytes(request), request.max_tokens)
        with self._lock:
            if self._budget is not None and self._usd + self._held + most > self._budget:
                return NoVerdict.BUDGET
            self._held += most
        reply: Answered | None = None
        try:
            reply = self._asker.ask(request)
            return reply
        finally:
            self._count(request, reply if isinstance(reply, Reply) else None, most, is_new=True)

    def spent(self) -> Spent:
        """Return what the replies so far have taken, those of earlier times too."""
        has_price = self._price is not None
        return Spent(
            requests=self._requests,
            asked_now=self._asked_now,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            usd=round_usd(self._usd) if has_price else None,
            usd_now=round_usd(self._usd_now) if has_price else None,
        )

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> Decimal:
        if self._price is None:
            return Decimal(0)
        return self._price.of(prompt_tokens, completion_tokens)

    def _count(self, request: Request, reply: Reply | None, held: Decimal, *, is_new: bool) -> None:
        """Count a reply once, however many questions it answers."""
        key = self._asker.key_of(request)
        with self._lock:
            self._held -= held
            if reply is None or key in self._counted:
                return
            self._counted.add(key)
            usd = self._cost(reply.prompt_tokens, reply.completion_tokens)
            if not reply.prompt_tokens:  # a server that counts nothing may have taken anything
                usd = self._cost(_num_bytes(request), request.max_tokens)
            self._requests += 1
            self._prompt_tokens += reply.prompt_tokens
            self._completion_tokens += reply.completion_tokens
            self._usd += usd
            if is_new:
                self._asked_now += 1
                self._usd_now += usd


def _num_bytes(request: Request) -> int:
    schema = json.dumps(request.json_schema or "")
    return len(schema) + sum(len(message.content.encode()) for message in request.messages)
