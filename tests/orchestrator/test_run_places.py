"""Which store belongs to which place, and where the run's own is counted."""

from __future__ import annotations

import pytest

from orchestrator.places import home_place, objects_url, place_of_objects
from tests.orchestrator.histories import make_offer, make_spec

EAST, WEST = make_offer("us-east-1"), make_offer("us-west-2")
CENTRAL = make_offer("us-central1", cloud="gcp")


def spec_with(stores, store="file:///home"):
    return make_spec(store=store, checkpoints={"stores": stores})


def test_nodes_save_to_their_region_s_store_and_elsewhere_to_the_run_s_own():
    spec = spec_with({"aws/us-west-2": "file:///west", "aws/us-east-1": "file:///home"})
    assert objects_url(spec, WEST) == "file:///west/demo"
    assert objects_url(spec, EAST) is None
    assert objects_url(spec, CENTRAL) is None


@pytest.mark.parametrize(("offer", "place"), [(EAST, "aws/us-east-1"), (WEST, "aws/us-west-2")])
def test_a_store_that_two_places_share_is_counted_in_the_attempt_s_own(offer, place):
    spec = spec_with({"aws/us-east-1": "file:///both", "aws/us-west-2": "file:///both"})
    assert place_of_objects(spec, offer, "file:///both/demo") == place


def test_another_place_s_store_is_counted_there():
    spec = spec_with({"aws/us-east-1": "file:///east", "aws/us-west-2": "file:///west"})
    assert place_of_objects(spec, EAST, "file:///west/demo") == "aws/us-west-2"
    assert place_of_objects(spec, EAST, None) is None


@pytest.mark.parametrize(
    ("store", "stores", "home"),
    [
        ("file:///home", {}, CENTRAL.place),  # the first offer's
        ("s3://home", {}, EAST.place),  # the first offer's in the bucket's cloud
        ("az://home", {}, CENTRAL.place),  # no offer is
        ("s3://home", {"aws/eu-west-1": "s3://home"}, ("aws", "eu-west-1")),  # the user says so
    ],
)
def test_the_run_s_own_store_is_counted_where_it_is_said_or_likely_to_be(store, stores, home):
    assert home_place(spec_with(stores, store), (CENTRAL, EAST, WEST)) == home
