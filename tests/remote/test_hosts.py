"""Which hosts are asked for recordings, and what nobody reaches through the worker."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.fakes import (
    HERE,
    NOT_PUBLIC,
    RECORDING,
    TRAP,
    Get,
    Host,
    Names,
    allowed_here,
    redirect,
    refused,
)
from worker.errors import InvalidInput, InvalidReference
from worker.remote import MAX_REDIRECTS, RemoteReferences, is_public, parse_url, resolve
from worker.schema import MAX_REFERENCE_BYTES

CONTEXT = ssl.create_default_context()  # reading the authorities takes a while
NO_CONNECTION = "no secure connection to the host could be made"


# Which hosts


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "0.0.0.0", "169.254.169.254",
        "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.251",
        "240.0.0.1", "255.255.255.255", "168.63.129.16", "192.88.99.1", "::", "::1", "fe80::1",
        "fe80::1%eth0", "2620:fe::fe%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
        "ff0e::1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::10.0.0.1", "::8.8.8.8",
        "64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::10.0.0.1", "2002:a00:1::",
        "2002:808:808::", "2001:0:a00:1::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1",
        "", "localhost", "1.1", "0x7f.0.0.1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_of_the_public_internet_is_refused(get: Get, address: str) -> None:
    assert not is_public(address)
    names = Names(voices=[[address]])
    assert refused(get, "/voice.wav", resolve=names, allowed=is_public) == NOT_PUBLIC


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::200e"]
)
def test_an_address_of_the_public_internet_is_allowed(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses())
def test_whatever_python_knows_not_to_be_global_is_refused(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    special = address.is_private or address.is_loopback or address.is_link_local
    special = special or address.is_multicast or address.is_reserved or address.is_unspecified
    if special or not address.is_global:
        assert not is_public(str(address))


@given(
    st.ip_addresses(v=4),
    st.sampled_from(["::", "::ffff:0:0", "64:ff9b::", "64:ff9b:1::"]),
    st.integers(0, 2**80 - 1),
)
def test_an_ipv4_address_in_the_clothes_of_ipv6_is_refused(
    inner: ipaddress.IPv4Address, prefix: str, rest: int
) -> None:
    outer = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(inner))
    assert not is_public(str(outer))
    sixtofour = ipaddress.IPv6Address((0x2002 << 112) | (int(inner) << 80) | rest)
    assert not is_public(str(sixtofour))
    teredo = ipaddress.IPv6Address((0x20010000 << 96) | (int(inner) << 64) | (rest >> 16))
    assert not is_public(str(teredo))


@pytest.mark.parametrize("found", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], []])
def test_a_host_with_any_private_address_is_refused_without_a_connection(
    get: Get, host: Host, found: list[str]
) -> None:
    assert refused(get, "/voice.wav", resolve=Names(voices=[found])) == NOT_PUBLIC
    assert host.connections == 0


def test_of_a_private_host_no_more_is_told_than_of_an_unknown_one(get: Get, host: Host) -> None:
    private = refused(get, "/voice.wav", resolve=Names(voices=[["10.0.0.7"]]))
    unknown = refused(get, host.url("/voice.wav", "nowhere.test"))
    assert private == unknown == NOT_PUBLIC


def test_the_connection_goes_to_the_address_that_was_checked(
    get: Get, host: Host, certificate: Path
) -> None:
    trap = Host(certificate, TRAP, host.port)
    names = Names(voices=[[HERE], [TRAP]])  # rebinding: public when checked, private after
    try:
        assert get("/voice.wav", resolve=names) == RECORDING
        assert names.asked == ["voices.test"]
        assert (host.connections, trap.connections) == (1, 0)
        assert refused(get, "/voice.wav", resolve=names) == NOT_PUBLIC
        assert (host.connections, trap.connections) == (1, 0)
    finally:
        trap.close()


def test_a_host_that_turns_private_between_redirects_is_refused(get: Get, host: Host) -> None:
    host.pages["/first"] = redirect("/voice.wav")
    assert refused(get, "/first", resolve=Names(voices=[[HERE], [TRAP]])) == NOT_PUBLIC
    assert host.connections == 1


@pytest.mark.parametrize(
    "name",
    [
        "localhost", "127.0.0.1", "[::1]", "0x7f.1", "2130706433", "127.1", "017700000001",
        "[::ffff:127.0.0.1]", "169.254.169.254", "[fe80::1%25lo]", "①②⑦.⓪.⓪.①", "a..b", ".a",
        "a" * 70 + ".test",
    ],
)  # fmt: skip
def test_no_notation_of_a_local_host_gets_past_the_real_resolver(name: str) -> None:
    strict = RemoteReferences(5.0, MAX_REFERENCE_BYTES)
    with pytest.raises((InvalidInput, InvalidReference)) as caught:
        asyncio.run(strict.fetch(f"https://{name}/voice.wav"))
    assert caught.value.message == NOT_PUBLIC or "is no address" in caught.value.message


def test_the_real_resolver_finds_all_addresses_of_a_host() -> None:
    assert asyncio.run(resolve("127.0.0.1", 443)) == ["127.0.0.1"]
    assert {*asyncio.run(resolve("localhost", 443))} <= {"127.0.0.1", "::1"}
    with pytest.raises((OSError, UnicodeError)):
        asyncio.run(resolve("a..b", 443))


def test_only_the_port_of_https_is_connected_to(get: Get, host: Host) -> None:
    names = Names()
    message = refused(get, "/voice.wav", ports=(443,), resolve=names)
    assert message == f"reference_audio_url: port {host.port} is not allowed; it must be 443"
    assert (names.asked, host.connections) == ([], 0)


# Redirects that lead astray


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://private.test:{port}/", "the host has no public address"),
        ("https://10.0.0.1:{port}/", "the host has no public address"),
        ("https://mirror.test:22/", "port 22 is not allowed"),
        ("https://mirror.test/", "port 443 is not allowed"),
        ("http://voices.test:{port}/voice.wav", "redirects to what is not allowed"),
        ("file:///etc/passwd", "redirects to what is not allowed"),
        ("data:audio/wav;base64,UklGRg==", "redirects to what is not allowed"),
        ("https://me:secret@mirror.test:{port}/", "redirects to what is not allowed"),
        ("https://[::1/", "redirects to what is not allowed"),
        ("https://[x]/", "redirects to what is not allowed"),
        ("//@@/", "redirects to what is not allowed"),
        ("", "redirects to what is not allowed"),
        ("/" + "a" * 5000, "redirects to what is not allowed"),
    ],
)
def test_a_redirect_is_checked_as_the_first_address_is(
    get: Get, host: Host, location: str, words: str
) -> None:
    host.pages["/first"] = redirect(location.format(port=host.port))
    names = Names(private=[["10.0.0.1"]])
    names._answers["10.0.0.1"] = [["10.0.0.1"]]
    message = refused(get, "/first", resolve=names)
    assert words in message
    assert "10.0.0.1" not in message and "private" not in message
    assert host.connections == 1


def test_redirects_in_a_circle_end(get: Get, host: Host) -> None:
    host.pages["/one"], host.pages["/two"] = redirect("/two"), redirect("/one")
    assert "redirects more than 3 times" in refused(get, "/one")
    assert host.connections == MAX_REDIRECTS + 1


# TLS


def test_a_host_whose_certificate_has_another_name_is_refused(get: Get, host: Host) -> None:
    assert NO_CONNECTION in refused(get, host.url("/voice.wav", "other.test"))
    assert (host.named, host.requests) == (["other.test"], [])


def test_a_host_without_a_trusted_certificate_is_refused(get: Get, host: Host) -> None:
    assert NO_CONNECTION in refused(get, "/voice.wav", context=None)
    assert host.requests == []


def test_a_host_that_is_not_there_is_refused_in_the_same_words(get: Get, host: Host) -> None:
    host.close()
    assert NO_CONNECTION in refused(get, "/voice.wav")


# The form of an address


@given(st.text(st.characters(), max_size=30) | st.text("htps:/@[]%.0-\\?#é", max_size=30))
def test_whatever_is_given_for_an_address_is_one_or_is_refused(text: str) -> None:
    for given_text in (text, f"https://{text}"):
        try:
            url = parse_url(given_text)
        except InvalidInput as error:
            assert error.message.startswith("reference_audio_url")
        else:
            assert (url.scheme, url.userinfo) == ("https", b"")
            assert url.raw_host.decode("ascii")


@given(st.text("htps:/@[]%.0-\\?#é\u2028", max_size=30))
def test_whatever_a_host_redirects_to_is_fetched_or_refused(location: str) -> None:
    remote = RemoteReferences(5.0, 10, resolve=Names(), allowed=allowed_here, context=CONTEXT)

    async def answer(*_: Any) -> httpx.Response:
        return httpx.Response(302, headers=[(b"location", location.encode())])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answer)
        with pytest.raises(InvalidReference):
            asyncio.run(remote.fetch("https://voices.test/"))
