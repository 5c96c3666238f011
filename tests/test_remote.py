"""Recordings that lie elsewhere: which are fetched, and what nobody reaches through the worker."""

from __future__ import annotations

import asyncio
import base64
import datetime
import gzip
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from worker.delivery import FittingDelivery
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.errors import InvalidInput, InvalidReference, JobTimeout
from worker.remote import MAX_REDIRECTS, RemoteReferences, is_public, parse_url, resolve
from worker.schema import MAX_REFERENCE_BYTES, JobInput, parse_job
from worker.service import Service
from worker.settings import GenerationSettings

HERE, TRAP = "127.0.0.1", "127.0.0.2"  # in these tests the first counts as public
RECORDING = bytes(range(256)) * 40
NOT_PUBLIC = "reference_audio_url: the host has no public address"
CONTEXT = ssl.create_default_context()  # reading the authorities takes a while
NO_CONNECTION = "no secure connection to the host could be made"

Page = Callable[[], Iterable[bytes | None]]  # pieces; None waits until the client leaves


# A host that does as it is told


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of voices.test and mirror.test, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests of the worker")])
    names = [x509.DNSName(host) for host in ("voices.test", "mirror.test")]
    now = datetime.datetime.now(datetime.timezone.utc)
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    file.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file


class Host:
    """An HTTPS server that plays what a test wrote for each path, byte for byte."""

    def __init__(self, certificate: Path, address: str = HERE, port: int = 0) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[str] = []
        self.named: list[str | None] = []  # by the client, in TLS
        self.connections = 0
        self.asked, self.left = threading.Event(), threading.Event()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._context.sni_callback = lambda _socket, name, _context: self.named.append(name)
        self._listener = socket.create_server((address, port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str, host: str = "voices.test") -> str:
        return f"https://{host}:{self.port}{path}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            plain,
            suppress(OSError),  # the client left, or did not like the certificate
            self._context.wrap_socket(plain, server_side=True) as connection,
        ):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65_536)
            self.requests.append(request.decode())
            self.asked.set()
            for piece in self.pages[request.split()[1].decode()]():
                if piece is None:
                    connection.recv(1)
                    self.left.set()
                else:
                    connection.sendall(piece)


@pytest.fixture
def host(certificate: Path) -> Iterator[Host]:
    host = Host(certificate)
    host.pages["/voice.wav"] = page(RECORDING)
    yield host
    host.close()


def page(body: bytes = b"", status: str = "200 OK", **headers: str) -> Page:
    lines = {"Content_Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return lambda: [f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body]


def chunked(pieces: Iterable[bytes]) -> Page:
    def play() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for piece in pieces:
            yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        yield b"0\r\n\r\n"

    return play


def redirect(location: str, status: str = "302 Found") -> Page:
    return page(status=status, Location=location)


class Names:
    """A resolver: each name with its answers in turn, the last of which stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.asked: list[str] = []
        here = {"voices.test": [[HERE]], "mirror.test": [[HERE]], "other.test": [[HERE]]}
        given = {f"{name}.test": list(each) for name, each in answers.items()}
        self._answers = {**here, **given}

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self._answers.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answers.pop(0) if len(answers) > 1 else answers[0]


def allowed_here(address: str) -> bool:
    return address == HERE or is_public(address)


def fetcher(host: Host, certificate: Path, **changed: Any) -> RemoteReferences:
    options = {
        "timeout_s": 10.0,
        "max_bytes": MAX_REFERENCE_BYTES,
        "resolve": Names(),
        "allowed": allowed_here,
        "context": ssl.create_default_context(cafile=certificate),
        "ports": (host.port,),
        **changed,
    }
    return RemoteReferences(**options)


Get = Callable[..., bytes]


@pytest.fixture
def get(host: Host, certificate: Path) -> Get:
    """Fetches a path, or an address."""

    def get(what: str, within_s: float | None = None, **changed: Any) -> bytes:
        url = host.url(what) if what.startswith("/") else what
        return asyncio.run(fetcher(host, certificate, **changed).fetch(url, within_s))

    return get


def refused(get: Get, what: str, **changed: Any) -> str:
    with pytest.raises(InvalidReference) as caught:
        get(what, **changed)
    return caught.value.message


# What is fetched


def test_a_recording_is_fetched_byte_for_byte(get: Get, host: Host) -> None:
    assert get("/voice.wav") == RECORDING
    host.pages["/chunked"] = chunked([RECORDING[:1000], RECORDING[1000:]])
    assert get("/chunked") == RECORDING


def test_the_host_is_asked_by_its_name_and_told_nothing_of_us(get: Get, host: Host) -> None:
    host.pages["/a%2Fb/%C3%A9?sig=x%2B%3D&y"] = page(RECORDING)
    assert get("/a%2Fb/%C3%A9?sig=x%2B%3D&y#part") == RECORDING
    line, *headers = host.requests[0].strip().split("\r\n")
    assert line == "GET /a%2Fb/%C3%A9?sig=x%2B%3D&y HTTP/1.1"  # as signed
    assert {header.lower() for header in headers} == {
        f"host: voices.test:{host.port}",
        "accept: */*",
        "accept-encoding: identity",
        "user-agent: dia-worker",
        "connection: close",
    }
    assert host.named == ["voices.test"]


@pytest.mark.parametrize("status", ["301 a", "302 b", "303 c", "307 d", "308 e"])
def test_redirects_are_followed_to_other_paths_and_other_hosts(
    get: Get, host: Host, status: str
) -> None:
    host.pages["/first"] = redirect("second", status)
    host.pages["/second"] = redirect(host.url("/third", "mirror.test"), status)
    host.pages["/third"] = redirect(f"//voices.test:{host.port}/voice.wav", status)
    names = Names()
    assert get("/first", resolve=names) == RECORDING
    assert names.asked == ["voices.test", "voices.test", "mirror.test", "voices.test"]


def test_cookies_of_one_host_are_not_sent_to_the_next(get: Get, host: Host) -> None:
    host.pages["/first"] = page(status="302 Found", Location="/voice.wav", Set_Cookie="id=1")
    assert get("/first") == RECORDING
    assert not any("cookie" in request.lower() for request in host.requests)


def test_a_proxy_and_credentials_of_the_environment_are_not_used(
    get: Get, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine voices.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get("/voice.wav") == RECORDING
    assert "authorization" not in host.requests[0].lower()


def test_where_one_address_of_a_host_does_not_answer_the_next_is_tried(
    get: Get, host: Host
) -> None:
    names = Names(voices=[[TRAP, HERE]])
    assert get("/voice.wav", resolve=names, allowed=lambda _: True) == RECORDING


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


# Sizes


def test_a_recording_of_just_the_limit_is_taken(get: Get, host: Host) -> None:
    host.pages["/chunked"] = chunked([RECORDING])
    for path in ("/voice.wav", "/chunked"):
        assert get(path, max_bytes=len(RECORDING)) == RECORDING


def test_a_length_over_the_limit_is_refused_before_anything_is_read(get: Get, host: Host) -> None:
    def play() -> Iterator[bytes | None]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 20000001\r\n\r\n"
        yield None

    host.pages["/large"] = play
    message = refused(get, "/large")
    assert "the recording has more than 20000000 bytes (20 MB), the limit" in message
    assert host.left.wait(5)


def test_a_body_without_a_length_is_refused_when_it_passes_the_limit(get: Get, host: Host) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield bytes(10_000)

    def unframed() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        yield from pieces()

    host.pages["/chunked"], host.pages["/unframed"] = chunked(pieces()), unframed
    for path in ("/chunked", "/unframed"):
        assert "more than 100000 bytes (0.1 MB)" in refused(get, path, max_bytes=100_000)
    assert sent < 50_000_000  # it is not read on


def test_a_compressed_recording_is_refused_and_not_unpacked(get: Get, host: Host) -> None:
    host.pages["/bomb"] = page(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")
    assert "sends the recording compressed" in refused(get, "/bomb")
    host.pages["/plain"] = page(RECORDING, Content_Encoding="identity")
    assert get("/plain") == RECORDING


# Time


def stalled() -> Iterator[bytes | None]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nRIFF"
    yield None


def silent() -> Iterator[None]:
    yield None


def trickling() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    while True:
        yield b"x"
        time.sleep(0.02)


@pytest.mark.parametrize("play", [stalled, silent, trickling])
def test_a_host_that_takes_its_time_is_given_up(get: Get, host: Host, play: Page) -> None:
    host.pages["/slow"] = play
    started = time.monotonic()
    assert "the download took longer than 0.3 s" in refused(get, "/slow", timeout_s=0.3)
    assert time.monotonic() - started < 2


def test_the_limit_is_of_all_redirects_together(get: Get, host: Host) -> None:
    def slow_redirect() -> Iterator[bytes]:
        time.sleep(0.15)
        yield b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /again\r\n\r\n"

    host.pages["/again"] = slow_redirect
    assert "took longer than 0.3 s" in refused(get, "/again", timeout_s=0.3)


def test_a_resolver_that_takes_its_time_is_given_up(get: Get) -> None:
    async def asleep(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return [HERE]

    assert "took longer than 0.2 s" in refused(get, "/voice.wav", timeout_s=0.2, resolve=asleep)


def test_a_job_s_own_deadline_ends_the_download_as_it_ends_everything(get: Get, host: Host) -> None:
    host.pages["/slow"] = stalled
    for within_s in (0.2, 0.0, -1.0):
        with pytest.raises(JobTimeout, match="within the time it was given"):
            get("/slow", within_s=within_s)
    assert "took longer than 0.2 s" in refused(get, "/slow", timeout_s=0.2, within_s=60)


# Answers that are none


@pytest.mark.parametrize("status", ["404 Not Found", "206 Partial Content", "500 a", "304 b"])
def test_any_status_but_200_is_refused_without_repeating_the_body(
    get: Get, host: Host, status: str
) -> None:
    host.pages["/x"] = page(b"" if status[:3] == "304" else b"internal words", status)
    message = refused(get, "/x")
    assert message == f"reference_audio_url: the host answers with status {status[:3]}, not 200"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nRIFF",  # and no more
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nRIFF",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nRIFF",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
    ],
)
def test_a_host_that_does_not_speak_http_is_refused(get: Get, host: Host, answer: bytes) -> None:
    host.pages["/x"] = lambda: [answer]
    assert refused(get, "/x") == "reference_audio_url: the download broke off"


def test_an_empty_answer_is_refused(get: Get, host: Host) -> None:
    host.pages["/x"] = page(b"")
    assert refused(get, "/x") == "reference_audio_url: the host sends nothing"


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


# A job with such a recording


@pytest.fixture
def recording(voice_folder: Path) -> bytes:
    return (voice_folder / "narrator_deep" / "audio.flac").read_bytes()


@pytest.fixture
def online(service: Service, host: Host, certificate: Path) -> Service:
    """The service, for which the test's host is the public internet."""
    remote = fetcher(host, certificate, timeout_s=5.0)
    return Service(
        service._engine, service._codec, service.voices, FittingDelivery(), service.model,
        remote=remote,
    )  # fmt: skip


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Sequence]:
    sequences: list[Sequence] = []
    submit = EngineLoop.submit

    def spy(loop: EngineLoop, sequence: Sequence) -> Future[Sequence]:
        sequences.append(sequence)
        return submit(loop, sequence)

    monkeypatch.setattr(EngineLoop, "submit", spy)
    return sequences


def job(service: Service, **fields: Any) -> JobInput:
    transcript = service.voices.get("narrator_deep").transcript
    fields = {"text": "[S1] Hello there.", "seed": 5, "max_tokens": 12, **fields}
    return parse_job({"reference_text": transcript, **fields}, GenerationSettings())


def test_a_clone_by_address_is_the_clone_of_the_recording_sent_along(
    online: Service, host: Host, recording: bytes, submitted: list[Sequence]
) -> None:
    host.pages["/deep.flac"] = page(recording, Content_Type="text/html")  # nobody looks at it
    sent = job(online, reference_audio=base64.b64encode(recording).decode())
    named = job(online, reference_audio_url=host.url("/deep.flac"))
    answers = [asyncio.run(online.run(each, "job")) for each in (sent, named)]
    one, other = submitted
    assert torch.equal(one.prompt, other.prompt) and len(one.prompt) > 86
    assert one.codes is not None and other.codes is not None
    assert torch.equal(one.codes, other.codes)
    assert answers[0]["audio"] == answers[1]["audio"]
    assert answers[0]["warnings"] == answers[1]["warnings"]


def test_a_clone_by_address_can_be_streamed(online: Service, host: Host, recording: bytes) -> None:
    host.pages["/deep.flac"] = page(recording)

    async def listen() -> list[Any]:
        named = job(online, reference_audio_url=host.url("/deep.flac"))
        return [item async for item in online.stream(named, "job")]

    assert len(asyncio.run(listen())) >= 2


def test_what_is_fetched_and_is_no_recording_is_refused_by_its_content(
    online: Service, host: Host, submitted: list[Sequence]
) -> None:
    host.pages["/x.wav"] = page(b"<html>private words</html>", Content_Type="audio/wav")
    with pytest.raises(InvalidReference, match="is not audio that can be read") as caught:
        asyncio.run(online.run(job(online, reference_audio_url=host.url("/x.wav")), "job"))
    assert "private" not in caught.value.message
    assert not submitted


def test_a_job_that_is_cancelled_leaves_the_host_at_once(online: Service, host: Host) -> None:
    host.pages["/slow"] = stalled

    async def cancel() -> None:
        task = asyncio.create_task(
            online.run(job(online, reference_audio_url=host.url("/slow")), "job")
        )
        await asyncio.to_thread(host.asked.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(host.left.wait, 2)

    asyncio.run(cancel())


def test_a_job_s_time_includes_the_download(online: Service, host: Host) -> None:
    host.pages["/slow"] = stalled
    slow = job(online, reference_audio_url=host.url("/slow"))
    with pytest.raises(JobTimeout):
        asyncio.run(online.run(slow, "job", timeout_s=0.3))


def test_a_worker_as_it_starts_fetches_from_public_hosts_only(service: Service) -> None:
    for url in ("https://127.0.0.1/x.wav", "https://localhost/x.wav"):
        with pytest.raises(InvalidReference, match="the host has no public address"):
            asyncio.run(service.run(job(service, reference_audio_url=url), "job"))


def test_a_service_that_fetches_nothing_says_so(service: Service) -> None:
    offline = Service(
        service._engine, service._codec, service.voices, FittingDelivery(), service.model
    )
    with pytest.raises(InvalidInput, match="reference_audio_url is turned off on this worker"):
        asyncio.run(offline.run(job(service, reference_audio_url="https://a.test/x"), "job"))
