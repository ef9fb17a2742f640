"""Addresses: what a client could not use is refused before one is made, without its password."""

from __future__ import annotations

import pytest

from checkpoints.addresses import check_proxies, split_address
from checkpoints.errors import AddressInvalid, StoreRefused, UnsupportedStore
from checkpoints.store import open_store

WRONG = (
    *("", "x", "a:80", "ftp://a", "//a", "http://", "http:///x", "https://?", "http://[::1"),
    *(
        "http://[zz]/v1",
        "http://[v1.a]",
        "http://[::1]a:80",
        "http://::1/",
        "http://]",
        "http://a]",
    ),
    *("http://a:x/v1", "http://a:+80", "http://a:8_0", "http://a:99999", "http://a:\u0663"),
    *("http://..", "http://a..b", "http://.a", "http://-a", "http://a%20b", "http://a b"),
    *("http://999.1.1.1", "http://b\xfccher.example", "http://xn--a", "http://xn--", "http://a;b"),
    *("http://a/\n", "http://a/\x7f", "http://a/\ud800", "http://" + "a" * 64, "http://a/" * 4000),
)
RIGHT = (
    *("http://localhost:8000/v1", "HTTPS://Host.Example./x?sig=a%2Fb", "http://a_b:", "http://1.2"),
    *("http://[::1]:80/", "http://[fe80::1%eth0]/", "http://xn--bcher-kva.example/", "http://a:0"),
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """Neither proxies nor endpoints of this machine."""
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("url", WRONG)
def test_what_is_no_address_is_refused_by_name(url):
    with pytest.raises(AddressInvalid, match="is no URL that can be used") as error:
        split_address(url, "The judge")
    assert error.value.what.startswith("The judge ")


@pytest.mark.parametrize("url", RIGHT)
def test_an_address_is_taken_apart(url):
    assert split_address(url).hostname


@pytest.mark.parametrize("url", ["http://me:secret@[zz]", "https://..?signature=secret"])
def test_a_refused_address_is_shown_without_its_secrets(url):
    with pytest.raises(AddressInvalid) as error:
        split_address(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("proxy", ["http://[zz]:1", "ftp://x", "x:y:z", "http://..", "http://a:x"])
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_that_is_none_is_refused_by_its_variable(monkeypatch, name, proxy):
    monkeypatch.setenv(name, proxy)
    with pytest.raises(AddressInvalid, match=name.upper()):
        check_proxies()


@pytest.mark.parametrize("hosts", ["a:x", "[::1]", "\xe9", "a\tb"])
def test_hosts_without_a_proxy_that_are_none_are_refused(monkeypatch, hosts):
    monkeypatch.setenv("NO_PROXY", f"localhost,{hosts}")
    with pytest.raises(AddressInvalid, match="NO_PROXY"):
        check_proxies()


def test_usual_proxies_are_fine(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "localhost, 127.0.0.1,::1,.example.com,*.x,10.0.0.0/8,a:80,")
    check_proxies()


@pytest.mark.parametrize(
    ("store", "variable"),
    [
        ("s3", "AWS_ENDPOINT_URL"),
        ("s3", "AWS_ENDPOINT_URL_S3"),
        ("s3", "AWS_ENDPOINT"),
        ("gs", "GOOGLE_BASE_URL"),
        ("az", "AZURE_STORAGE_ENDPOINT"),
    ],
)
@pytest.mark.parametrize("url", ["http://[::1", "http://a:x", "x", "http://\xe9"])
def test_a_store_s_endpoint_that_is_no_address_is_refused(monkeypatch, store, variable, url):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "a")
    monkeypatch.setenv(variable, url)
    with pytest.raises(AddressInvalid, match=variable):
        open_store(f"{store}://bucket/runs")


def test_an_empty_endpoint_is_said(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    with pytest.raises(AddressInvalid, match="AWS_ENDPOINT_URL ''"):
        open_store("s3://bucket/runs")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_REGION"])
def test_a_setting_that_fits_no_header_is_said_without_its_value(monkeypatch, variable):
    monkeypatch.setenv(variable, "secret\n")
    with pytest.raises(StoreRefused, match=variable) as error:
        open_store("s3://bucket/runs")
    assert "secret" not in str(error.value)


def test_a_key_that_is_none_is_one_error(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "a")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a b")
    with pytest.raises(StoreRefused, match="az://bucket cannot be opened"):
        open_store("az://bucket/runs")


@pytest.mark.parametrize(
    "url",
    [
        *("s3://a b/x", "s3://a\x01/x", "gs://a@b/x", "az://../x", "s3://a:1/x", "s3://\xe9/x"),
        *("s3://a/b%00", "s3://a/b//c", "s3://a/../b", "file:///a%00b"),
    ],
)
def test_a_store_that_no_cloud_could_have_is_refused(url):
    with pytest.raises(UnsupportedStore):
        open_store(url)
