"""Which store a region's nodes save to: `checkpoints.stores` of the spec, as run folders."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from checkpoints.errors import StoreError
from checkpoints.places import Places
from checkpoints.store import ObjectStore, is_bucket
from orchestrator.errors import SpecError
from orchestrator.offers import Offer
from orchestrator.runs import open_run_folder, run_folder_url
from orchestrator.spec import RunSpec

# The cloud whose buckets a scheme names.
_CLOUD_OF_SCHEME = {"s3": "aws", "gs": "gcp", "az": "azure"}


def require_reachable(spec: RunSpec) -> None:
    """Raise SpecError if the run's nodes cannot reach its store."""
    if not spec.is_local and not is_bucket(spec.store):
        raise SpecError(
            f"store: {spec.store} is on this machine, which nodes on clouds cannot reach.",
            "Write s3://bucket/prefix (or gs://, az://).",
        )


def home_place(spec: RunSpec, offers: tuple[Offer, ...]) -> tuple[str, str]:
    """Return the cloud and region that the run's store is counted in, for egress.

    What `checkpoints.stores` says of it; else the cheapest offer's place, in the bucket's cloud
    where there is one.
    """
    for place, url in spec.checkpoints.stores.items():
        if url == spec.store:
            return split_place(place)
    cloud = _CLOUD_OF_SCHEME.get(urlsplit(spec.store).scheme)
    in_cloud = (offer.place for offer in offers if offer.cloud == cloud)
    return next(in_cloud, offers[0].place)


def split_place(place: str) -> tuple[str, str]:
    """Return cloud and region of what the spec writes as cloud/region."""
    cloud, _, region = place.partition("/")
    return cloud, region


def objects_url(spec: RunSpec, offer: Offer) -> str | None:
    """Return the run folder near the offer's nodes, None where that is the run's own."""
    near = spec.checkpoints.stores.get("/".join(offer.place), spec.store)
    return None if near == spec.store else run_folder_url(near, spec.name)


def other_objects_urls(spec: RunSpec) -> tuple[str, ...]:
    """Return every run folder beside the run's own that may hold checkpoints."""
    return tuple(run_folder_url(url, spec.name) for url in _other_stores(spec))


def place_of_objects(spec: RunSpec, offer: Offer, store: str | None) -> str | None:
    """Return the cloud/region of a store that an attempt at `offer` uses; None: the run's own.

    Several places may share a store; the attempt's own comes first.
    """
    if store is None:
        return None
    if store == objects_url(spec, offer):
        return "/".join(offer.place)
    stores = spec.checkpoints.stores.items()
    return next((p for p, url in stores if run_folder_url(url, spec.name) == store), None)


def open_places(
    folder: ObjectStore, spec: RunSpec, skip: Callable[[str, StoreError], None] | None = None
) -> Places:
    """Return all stores of a run, for looking after what they hold.

    One that cannot be opened is told to `skip` and left out; without a `skip` its error is raised.
    """
    others = []
    for url in _other_stores(spec):
        try:
            others.append(open_run_folder(url, spec.name))
        except StoreError as error:
            if skip is None:
                raise
            skip(url, error)
    return Places(records=folder, objects=folder, others=tuple(others))


def _other_stores(spec: RunSpec) -> list[str]:
    return sorted({url for url in spec.checkpoints.stores.values() if url != spec.store})
