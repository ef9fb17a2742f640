"""Stores to test against: a folder, memory, the S3 server of tests/conftest.py, and one of yours.

TEST_STORE_URL (docs/checkpoints-stores.md) names one that is to pass the same tests.
"""

import os
import secrets

import pytest

from checkpoints.store import open_store

OWN_STORE = "TEST_STORE_URL"
S3 = pytest.param("s3", marks=pytest.mark.xdist_group("s3"))


@pytest.fixture(params=["folder", "memory", S3, *([OWN_STORE] if OWN_STORE in os.environ else [])])
def store_url(request, tmp_path):
    """Yield the URL of an empty store of every kind."""
    name = f"run-{secrets.token_hex(6)}"
    match request.param:
        case "folder":
            yield (tmp_path / name).as_uri()
        case "memory":
            yield f"memory://{name}/a/b"
        case "s3":
            yield f"{request.getfixturevalue('s3_url')}/{name}"
        case _:
            url = f"{os.environ[OWN_STORE].rstrip('/')}/{name}"
            yield url
            used = open_store(url)
            used.delete([entry.key for entry in used.list("")])


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
