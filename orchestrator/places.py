"""Which store a region's nodes save to: `checkpoints.stores` of the spec, as run folders."""

from __future__ import annotations

from checkpoints.places import Places
from checkpoints.store import ObjectStore
from orchestrator.offers import Offer
from orchestrator.runs import open_run_folder, run_folder_url
from orchestrator.spec import RunSpec


def objects_url(spec: RunSpec, offer: Offer) -> str | None:
    """Return the run folder near the offer's nodes, None where that is the run's own."""
    near = spec.checkpoints.stores.get("/".join(offer.place), spec.store)
    return None if near == spec.store else run_folder_url(near, spec.name)


def all_objects_urls(spec: RunSpec) -> tuple[str, ...]:
    """Return every run folder beside the run's own that may hold checkpoints."""
    urls = {url for url in spec.checkpoints.stores.values() if url != spec.store}
    return tuple(run_folder_url(url, spec.name) for url in sorted(urls))


def place_of_objects(spec: RunSpec, store: str | None) -> tuple[str, str] | None:
    """Return the cloud and region of the store that a fact names; None: the run folder's."""
    for place, url in spec.checkpoints.stores.items():
        if store == run_folder_url(url, spec.name):
            cloud, _, region = place.partition("/")
            return cloud, region
    return None


def open_places(folder: ObjectStore, spec: RunSpec) -> Places:
    """Return all stores of a run, for looking after what they hold."""
    others = {url for url in spec.checkpoints.stores.values() if url != spec.store}
    return Places(
        records=folder,
        objects=folder,
        others=tuple(open_run_folder(url, spec.name) for url in sorted(others)),
    )
