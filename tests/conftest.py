"""S3 servers on loopback, for every test that needs one: a real one, and one that is to blame."""

import pytest
from hypothesis import settings

from orchestrator.cloud.local.s3_server import BUCKET, read_server, start_server
from tests.loose_s3 import loose_server

# How long an example takes is the machine's business; benchmarks measure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    """Begin with the longest chain, the runs on the tests' clouds, so that all else fits beside."""

    items.sort(key=lambda item: "test_skypilot.py" not in item.nodeid)


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
