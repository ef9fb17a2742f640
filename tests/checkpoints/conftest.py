"""Stores to test against: a folder, memory, and the S3 server of tests/conftest.py."""

import os
import secrets

import pytest

from checkpoints.store import open_store


@pytest.fixture(
    params=["folder", "memory", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))]
)
def store_url(request, tmp_path):
    """Yield the URL of an empty store of every kind."""
    name = f"run-{secrets.token_hex(6)}"
    match request.param:
        case "folder":
            return (tmp_path / name).as_uri()
        case "memory":
            return f"memory://{name}/a/b"
        case _:
            return f"{request.getfixturevalue('s3_url')}/{name}"


@pytest.fixture
def store(store_url):
    return open_store(store_url)


@pytest.fixture
def folder_store(tmp_path):
    return open_store((tmp_path / "run").as_uri())


@pytest.fixture
def memory_store():
    return open_store(f"memory://{secrets.token_hex(6)}")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    os.environ["OMP_NUM_THREADS"] = "1"
