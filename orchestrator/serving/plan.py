"""What a service on clouds would be and cost, before anything is started."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.errors import SpecError, UsageError
from orchestrator.memory import GPU_BYTES
from orchestrator.offers import Market, MarketPreference, Offer, PriceTable, list_offers
from orchestrator.prices import prices_on
from orchestrator.serving.engines import GPU_SHARE

# Per model beside its weights: CUDA's context, activations, and room for a few answers' keys and
# values. Less would start and answer nothing.
_BESIDE_WEIGHTS = 3e9
_ACCELERATORS = re.compile(r"(?P<kind>[A-Za-z][\w.-]*)(:(?P<count>[1-9][0-9]*))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """How many nodes there are, and when there are more."""

    least: int
    most: int
    requests_per_s: float | None
    """Of one replica, above which there is another; None: there are `least` always."""
    market: MarketPreference


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """What will serve, where it may and what it costs; `offers` are cheapest first."""

    service: str
    accelerators: str
    replicas: Replicas
    offers: tuple[Offer, ...]
    prices: PriceTable

    def usd_per_hour(self, num_replicas: int, market: Market) -> Decimal | None:
        """Return what so many cost at the cheapest price that is believed; None: not for sale."""
        offers = [one for one in self.offers if one.market is market]
        return num_replicas * offers[0].usd_per_hour if offers else None

    @property
    def worst_usd_per_hour(self) -> Decimal:
        """Most that an hour can cost.

        All replicas at the dearest price; with on-demand stand-ins, each with its own beside it.
        """
        dearest = [
            max(one.usd_per_hour for one in self.offers if one.market is market)
            for market in Market
            if any(one.market is market for one in self.offers)
        ]
        return self.replicas.most * sum(dearest, Decimal(0))


def plan_service(
    service: str,
    accelerators: str,
    clouds: Sequence[str],
    replicas: Replicas,
    *,
    offline: bool = False,
) -> ServicePlan:
    """Plan a service.

    Raises:
        UsageError: no price of such nodes is known.
    """
    wants_spot = replicas.market.allows(Market.SPOT)
    prices = prices_on(accelerators, clouds, wants_spot=wants_spot, offline=offline)
    try:
        offers = list_offers(prices, accelerators, clouds, replicas.market)
    except SpecError as error:
        raise UsageError(
            f"No price of {accelerators} is known ({', '.join(clouds)}; {replicas.market.value}).",
            "Have SkyPilot fetch its catalog: sky show-gpus; or choose other --accelerators, as "
            f"A100-80GB:1, or other clouds: --infra. ({error.next_step})",
        ) from error
    trusted = tuple(one for one in offers if one.doubt is None)
    return ServicePlan(
        service=service,
        accelerators=accelerators,
        replicas=replicas,
        # SkyServe goes where it is cheapest, so it must not be sent after a price that is wrong.
        offers=trusted or offers,
        prices=prices,
    )


def read_accelerators(text: str) -> str:
    """Return what --accelerators asks for as price lists write it: a100 is A100:1.

    Raises:
        UsageError: it is not KIND or KIND:COUNT.
    """
    found = _ACCELERATORS.fullmatch(text)
    if found is None:
        raise UsageError(
            f"--accelerators {text!r} is not KIND:COUNT.", "Give a kind and how many: A100-80GB:1."
        )
    kind, count = found["kind"], found["count"] or "1"
    known = {one.lower(): one for one in GPU_BYTES}
    return f"{known.get(kind.lower(), kind)}:{count}"


def require_room(accelerators: str, weights: Sequence[int]) -> None:
    """Raise UsageError if models whose weights have so many bytes cannot be in a node's memory."""
    kind, count = _parse(accelerators)
    if kind not in GPU_BYTES or _fits(kind, count, weights):
        return
    room = _share_of_gpu(kind, count, len(weights)) / 1e9
    raise UsageError(
        f"On {accelerators} there are {room:.0f} GB for each of {len(weights)} models, on one GPU "
        f"each, and one has {max(weights) / 1e9:.0f} GB of weights and needs 3 more to work with.",
        f"What would fit: {what_fits(weights)}.",
    )


def what_fits(weights: Sequence[int]) -> str:
    """Return the accelerators on which such models have room, as text."""
    found = [
        f"{kind}:{count}"
        for count in (1, 2, 4, 8)
        for kind in GPU_BYTES
        if _fits(kind, count, weights) and (count == 1 or not _fits(kind, count // 2, weights))
    ]
    return ", ".join(found) or "no GPU that is known here"


def _parse(accelerators: str) -> tuple[str, int]:
    kind, count = accelerators.split(":")
    return kind, int(count)


def _fits(kind: str, count: int, weights: Sequence[int]) -> bool:
    return max(weights) + _BESIDE_WEIGHTS <= _share_of_gpu(kind, count, len(weights))


def _share_of_gpu(kind: str, count: int, num_models: int) -> float:
    """Return the bytes that a model may take: GPUs are given out in turn, and shared evenly."""
    return GPU_SHARE * GPU_BYTES[kind] / math.ceil(num_models / count)
