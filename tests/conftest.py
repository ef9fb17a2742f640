"""S3 servers on loopback, for every test that needs one: a real one, and one that is to blame."""

import os

import pytest
from hypothesis import settings

from orchestrator.cloud.local.s3_server import BUCKET, read_server, start_server
from tests.loose_s3 import loose_server

# How long an example takes is the machine's business; benchmarks measure.
# CI tries the same examples each time; whoever runs the tests elsewhere tries new ones.
settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
# pytest tests/fuzz --hypothesis-profile long --timeout 0
settings.register_profile("long", deadline=None, max_examples=5_000)
settings.load_profile("untimed")


# Longest first, so that no worker is left with one of these at the end; the runs on the tests
# clouds take as long as everything else together.
_LONG = ("test_skypilot.py", "test_interruptions.py", "test_smollm2.py", "test_browser.py")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest."""

    def place(item):
        return _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG)

    items.sort(key=place)


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory):
    """Start SeaweedFS once and yield the URL of its bucket."""
    folder = tmp_path_factory.mktemp("weed")
    process = start_server(folder)
    server = read_server(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield f"s3://{BUCKET}"
    process.kill()
    process.wait()


@pytest.fixture
def loose(monkeypatch):
    """Yield the server of tests.loose_s3; s3:// URLs are its buckets meanwhile."""
    with loose_server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield server
