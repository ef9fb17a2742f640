"""What only stores in a bucket have: credentials that change, and a server that says no."""

import base64
import os
import re
import secrets
import time

import boto3
import pytest

from checkpoints.checksums import crc64
from checkpoints.errors import ObjectMissing, StoreRefused
from checkpoints.store import open_store
from tests.checkpoints.saving import claim, read_range
from tests.loose_s3 import BUCKET

PART = memoryview(bytes(16 << 20))
HINT = "Check the credentials"


class Profile:
    """A credentials file of one profile, in place of keys in the environment."""

    def __init__(self, folder, monkeypatch):
        self._file = folder / "credentials"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(self._file))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))

    def write(self, key, secret, *, name="default", **settings):
        fields = {"aws_access_key_id": key, "aws_secret_access_key": secret, **settings}
        lines = [f"{field} = {value}\n" for field, value in fields.items()]
        self._file.write_text(f"[{name}]\n{''.join(lines)}")


@pytest.fixture
def keys(s3_url):
    """Return the id and the secret that the S3 server takes."""
    return os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]


@pytest.fixture
def profile(keys, tmp_path, monkeypatch):
    return Profile(tmp_path, monkeypatch)


def test_the_server_is_told_the_checksum_of_what_it_stores(keys, s3_url):
    name = secrets.token_hex(6)
    store = open_store(f"{s3_url}/{name}")
    store.put("whole", b"abc")
    store.put("parts", iter([PART, PART, b"end"]))
    bucket, _, _ = s3_url.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    heads = [
        client.head_object(Bucket=bucket, Key=f"{name}/{key}", ChecksumMode="ENABLED")
        for key in ("whole", "parts")
    ]
    assert base64.b64decode(heads[0]["ChecksumCRC64NVME"]) == crc64(b"abc").to_bytes(8, "big")
    assert heads[1]["ChecksumCRC64NVME"]


def again(act, seconds=20):
    """Return when `act` is no longer refused: keys may be held for 100 ms after they changed."""
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            return act()
        except StoreRefused:
            assert time.monotonic() < give_up_at, "still refused"


@pytest.mark.xdist_group("s3")
@pytest.mark.parametrize("name", ["default", "training"])
def test_keys_come_from_a_profile_where_the_environment_has_none(
    s3_url, keys, profile, monkeypatch, name
):
    if name != "default":
        monkeypatch.setenv("AWS_PROFILE", name)
    profile.write(*keys, name=name)
    store = open_store(f"{s3_url}/{secrets.token_hex(6)}")
    store.put("a", iter([PART, b"x"]))
    assert [entry.key for entry in store.list("")] == ["a"]
    assert store.abort_uploads("", lambda key: True) == []


@pytest.mark.xdist_group("s3")
def test_keys_that_change_during_an_upload_are_read_again_and_so_are_those_that_follow(
    s3_url, keys, profile
):
    profile.write(*keys)
    store = open_store(f"{s3_url}/{secrets.token_hex(6)}")
    num_parts = 0

    def source():
        nonlocal num_parts
        for num_parts in range(100):  # two are sent before; it never gets to a hundred
            if num_parts == 3:
                profile.write(keys[0], "wrong")
            yield PART

    with pytest.raises(StoreRefused, match="refused access to large") as caught:
        store.put("large", source())
    assert HINT in caught.value.next_step
    assert 3 <= num_parts < 99
    profile.write(*keys)
    again(lambda: store.put("large", iter([PART, b"x"])))
    assert [entry.size for entry in store.list("")] == [len(PART) + 1]
    store.abort_uploads("", lambda key: True)


@pytest.mark.xdist_group("s3")
@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.get("a"),
        lambda store: read_range(store, "a", 0, 1),
        lambda store: store.put("a", b"x"),
        lambda store: store.put("a", iter([PART, b"x"])),
        lambda store: store.create("a", b"x"),
        lambda store: store.replace("a", b"x", '"0123"'),
        lambda store: store.list(""),
        lambda store: store.delete(["a"]),
        lambda store: store.abort_uploads("", lambda key: True),
    ],
    ids=["get", "range", "put", "stream", "create", "replace", "list", "delete", "abort"],
)
def test_wrong_keys_are_a_refusal_in_one_line_whatever_is_called(s3_url, monkeypatch, act):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreRefused, match=s3_url) as caught:
        act(open_store(f"{s3_url}/x"))
    assert "\n" not in caught.value.what
    assert "<" not in caught.value.what
    assert caught.value.next_step


def test_a_profile_that_is_not_there_is_named(tmp_path, monkeypatch):
    Profile(tmp_path, monkeypatch).write("x", "x")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreRefused, match="nobody"):
        open_store("s3://bucket/x").get("a")


def test_region_and_server_of_a_profile_are_used(loose, tmp_path, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    profile = Profile(tmp_path, monkeypatch)
    profile.write("x", "x", region="eu-north-1", endpoint_url=loose.endpoint)
    store = open_store(f"s3://{BUCKET}/x")
    store.put("a", b"x")
    assert loose.objects == {"x/a": b"x"}
    assert re.search("Credential=x/[0-9]{8}/eu-north-1/s3/", loose.authorizations[-1])


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.put("a", b"x"),
        lambda store: store.create("a", b"x"),
        lambda store: store.list(""),
    ],
    ids=["put", "create", "list"],
)
def test_a_bucket_that_is_not_there_is_named(loose, act):
    with pytest.raises(StoreRefused, match="s3://typo does not exist"):
        act(open_store("s3://typo/runs"))


@pytest.mark.parametrize("prefix", ["", "/runs/demo"])
def test_what_is_missing_is_no_refusal_where_the_server_says_the_same_of_both(loose, prefix):
    """As AWS does under the policy of `doctor --iam`, which allows to list one prefix."""
    loose.hides_missing = True
    store = open_store(f"s3://{BUCKET}{prefix}")
    for key in ("HEAD.json", "HEAD.jsonl", "checkpoints/a", "z"):
        store.put(f"{key}0", b"x")
        with pytest.raises(ObjectMissing):
            store.get(key)
        with pytest.raises(ObjectMissing):
            read_range(store, key, 0, 1)
    assert claim(open_store(f"s3://{BUCKET}{prefix}/run")) == 1
