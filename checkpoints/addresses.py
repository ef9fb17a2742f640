"""Addresses of servers that people give: what no client could use is named before one is made.

Clients answer such an address with an error of whatever kind, the stores' library with a panic.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from checkpoints.errors import AddressInvalid

# Longer than any presigned URL; httpx gives up at four times as much.
_MOST_CHARACTERS = 16_000
_PLACE = re.compile(r"(?:\[(?P<ip>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[0-9]{0,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_MOST_OF_NAME, _MOST_OF_PORTS = 253, 65535
# What letters beyond ASCII (xn--...) may stand for: letters, marks and digits, as RFC 5892 has it.
_IDNA = ("Ll", "Lo", "Lm", "Mn", "Mc", "Nd")
_HTTP, _SOCKS = ("http", "https"), ("socks5", "socks5h")


def split_address(url: str, called: str = "The address") -> SplitResult:
    """Return the parts of http://HOST[:PORT]/... or https://...; `called` says what it is for.

    Raises:
        AddressInvalid: it is none. It is shown without what may be a password or a signature.
    """
    return _split(url, called, _HTTP)


def check_proxies() -> None:
    """Look at what clients take from the environment on proxies.

    Raises:
        AddressInvalid: it could not be used.
    """
    proxies = getproxies()
    for scheme in ("http", "https", "all"):
        if url := proxies.get(scheme):
            called = f"{scheme.upper()}_PROXY"
            # A proxy may be given as HOST:PORT.
            parts = _split(url if "://" in url else f"http://{url}", called, _HTTP + _SOCKS)
            if parts.scheme in _SOCKS and find_spec("socksio") is None:
                raise _invalid(url, called, "SOCKS needs pip install socksio")
    for host in proxies.get("no", "").split(","):
        name, _, port = host.strip().partition(":")
        if port and not port.isdecimal() and not _is_ip(host.strip()):
            raise _invalid(host, "NO_PROXY", "it is no host")
        if not (name.isascii() and name.isprintable()):
            raise _invalid(host, "NO_PROXY", "it is no host in ASCII")


def check_key(key: str, called: str) -> None:
    """Look at a key that is to be sent in a header.

    Raises:
        AddressInvalid: no header can hold it. It is not shown.
    """
    if not (key.isascii() and key.isprintable()):
        raise AddressInvalid(
            f"{called} has characters that no header can hold.", "Set it anew, on one line."
        )


def _split(url: str, called: str, schemes: tuple[str, ...]) -> SplitResult:
    if len(url) > _MOST_CHARACTERS:
        raise _invalid(url, called, f"it has {len(url):,} characters")
    if not url.isprintable() or " " in url:
        raise _invalid(url, called, "it has blanks or unprintable characters")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        # The library's own words repeat all of it.
        raise _invalid(url, called, "it is no address") from error
    if parts.scheme not in schemes:
        raise _invalid(url, called, f"it begins with none of {', '.join(schemes)} and ://")
    why = _what_is_wrong(parts.netloc.rpartition("@")[2])
    if why is not None:
        raise _invalid(url, called, why)
    return parts


def _what_is_wrong(place: str) -> str | None:
    """Return what is wrong with HOST[:PORT]."""
    found = _PLACE.fullmatch(place)
    if found is None:
        return f"{place!r:.80} is no HOST or HOST:PORT"
    if int(found["port"] or 0) > _MOST_OF_PORTS:
        return f"there is no port {found['port']}"
    if found["ip"]:
        return None if ":" in found["ip"] and _is_ip(found["ip"]) else f"{place!r:.80} is no IP"
    host = found["name"].lower()
    if not host.isascii():
        return f"{host!r:.80} has to be written in ASCII, with xn-- for other letters"
    labels = host.removesuffix(".").split(".")
    is_name = len(host) <= _MOST_OF_NAME and all(map(_is_label, labels))
    is_ip = len(labels) == 4 and all(map(str.isdecimal, labels))
    return None if is_name and (not is_ip or _is_ip(host)) else f"{host!r:.80} is no host"


def _is_label(label: str) -> bool:
    if not label.startswith("xn--"):
        return _LABEL.fullmatch(label) is not None
    from unicodedata import category  # nearly never

    try:
        letters = label.encode().decode("idna")
    except UnicodeError:
        return False
    return all(category(one) in _IDNA or one == "-" for one in letters)


def _is_ip(host: str) -> bool:
    from ipaddress import ip_address  # 4 ms

    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _invalid(url: str, called: str, why: str) -> AddressInvalid:
    # Neither the user and password before the host nor a signature behind it.
    scheme, separator, rest = url.partition("://")
    shown = f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"
    return AddressInvalid(
        f"{called} {shown!r:.200} is no URL that can be used: {why}.",
        "Write it as http://HOST:PORT.",
    )
