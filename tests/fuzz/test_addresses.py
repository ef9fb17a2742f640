"""Addresses: what is not refused is one that clients can use, down to the look-up of its name."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from checkpoints.addresses import check_proxies, split_address
from checkpoints.errors import AddressInvalid, CheckpointError
from checkpoints.store import open_store
from orchestrator.errors import UsageError
from orchestrator.openai_api import is_loopback, resolve_url
from tests.fuzz.mutation import VALUES, foreseen, fuzzed

HOSTS = (
    *("localhost", "127.0.0.1", "[::1]", "a.example.", "xn--bcher-kva.example", "[fe80::1%lo]"),
    *("", ".", "..", "[", "[::1", "::1", "[zz]", "[v1.a]", "[::1]a", "a b", "b\xfccher", "\ud800"),
    *("999.1.1.1", "1.2.3", "0x7f.1", "xn--a", "xn--", "xn--ls8h.la", "-a", "a%20b", "a" * 64),
    *("me:secret@a", "a@b@c", "\N{FULLWIDTH SOLIDUS}a", "a\\b", "a;b", "*", "\u2100"),
)
PORTS = ("", ":", ":0", ":80", ":65535", ":65536", ":x", ":+1", ":1_0", ":\u0663", ":80:80", ":-1")
PATHS = ("", "/", "/v1", "//", "/..", "/%zz", "/%00", "?a=b", "#", "/\n", "/\x7f", "/\xe9", "/a b")
addresses = (
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["http://", "https://", "HTTP://", "http:/", "ftp://", "", "//", "s3://"]),
        st.sampled_from(HOSTS) | st.text(max_size=6),
        st.sampled_from(PORTS),
        st.sampled_from(PATHS) | st.text(max_size=6),
    )
    | st.sampled_from(VALUES).map(str)
    | st.text(max_size=12)
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@fuzzed
@given(url=addresses)
@example(url="http://[::1")
@example(url="http://..")
@example(url="http://xn--a")
def test_an_address_can_be_asked_or_is_refused(url):
    try:
        parts = split_address(url)
    except AddressInvalid as error:
        foreseen(error)
        return
    assert parts.hostname
    parts.hostname.encode("idna")  # as looking it up does
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=request.url.host))
    with httpx.Client(base_url=url, transport=transport) as client:
        assert client.get("models").is_success
    assert httpx.URL(url).host


@fuzzed
@given(url=addresses)
def test_a_server_s_address_is_resolved_once_and_for_all_or_refused(url):
    try:
        address = resolve_url(url)
    except UsageError as error:
        foreseen(error)
        return
    assert resolve_url(address) == address
    assert is_loopback(address) == is_loopback(url)


@fuzzed
@given(name=st.sampled_from(PROXIES), value=addresses.filter(lambda value: "\0" not in value))
@example(name="HTTPS_PROXY", value="http://[zz]:1")
@example(name="ALL_PROXY", value="socks5://a:1")
@example(name="NO_PROXY", value="[::1]")
def test_clients_can_be_made_with_a_proxy_or_it_is_refused(name, value):
    with pytest.MonkeyPatch.context() as patch:
        for other in PROXIES:
            patch.delenv(other, raising=False)
            patch.delenv(other.lower(), raising=False)
        patch.setenv(name, value.encode("utf-8", "replace").decode())
        try:
            check_proxies()
        except AddressInvalid as error:
            foreseen(error)
            return
        httpx.Client().close()


@fuzzed
@given(
    scheme=st.sampled_from(["s3", "gs", "az", "file", "memory", "s3-local", "x"]),
    place=st.sampled_from(HOSTS) | st.sampled_from(VALUES).map(str) | st.text(max_size=6),
    path=st.sampled_from(PATHS) | st.text(max_size=6),
    endpoint=addresses.filter(lambda value: "\0" not in value),
)
@example(scheme="s3", place="a", path="/b", endpoint="http://[::1")
@example(scheme="s3", place="a b", path="/b", endpoint="http://127.0.0.1:1")
@example(scheme="gs", place="a", path="/b", endpoint="http://a:x")
def test_a_store_can_be_opened_or_is_refused(scheme, place, path, endpoint):
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("AWS_ENDPOINT_URL", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT"):
            patch.setenv(variable, endpoint.encode("utf-8", "replace").decode())
        patch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "a")
        patch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
        try:
            assert open_store(f"{scheme}://{place}{path}").url
        except CheckpointError as error:
            foreseen(error)
