"""A recording that lies elsewhere: from the address that a job names to the bytes found there.

Whoever sends a job chooses what this worker connects to, and must not reach through it what only
the worker can reach. So names are resolved here, once for each request; every address found must be
public; the connection goes to an address that was checked, never to the name, which may resolve
otherwise a moment later; and TLS holds the host to its name. A redirect is another such request.
Messages tell nothing of what was found but what a user needs: they say the same of a name that is
unknown and of one that is private, and they repeat nothing that the host sent.

Knows nothing of audio: whether the bytes are a recording shows when they are decoded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import anyio
import httpx

from worker.errors import InvalidInput, InvalidReference, JobTimeout

__all__ = ["TURNED_OFF", "RemoteReferences", "is_public", "parse_url", "resolve"]

FIELD = "reference_audio_url"
TURNED_OFF = (
    f"{FIELD} is turned off on this worker (generation.limits.remote_references); "
    "send the recording itself, as reference_audio"
)
MAX_URL = 4096  # characters; signed addresses of object stores have up to some 2500
MAX_REDIRECTS = 3
HTTPS_PORT = 443
CONNECT_S = 5.0  # to one address

_REDIRECTS = (301, 302, 303, 307, 308)
_VALID = "it must be an https:// address with a host name"
_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # a little of gzip would unpack to gigabytes
    "Connection": "close",
    "User-Agent": "dia-worker",
}

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

# What `ipaddress` of some Python version calls global, and what is none of the public's hosts.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's own services, as seen from its machines
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: stands for an IPv4 address
        "3fff::/20",  # documentation
    )
)
# All other ranges are special, and those that stand for IPv4 addresses (mapped, compatible, NAT64)
# are among them: no check of the IPv4 address inside can then be forgotten.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host of the public internet, whatever its notation."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and (
        parsed not in _GLOBAL_UNICAST or parsed.scope_id is not None
    ):
        return False
    special = parsed.is_multicast or parsed.is_reserved or not parsed.is_global
    return not special and not any(parsed in network for network in _NOT_PUBLIC)


async def resolve(host: str, port: int) -> list[str]:
    """Every IP address of a host, by the system's resolver, in its order.

    Raises:
        OSError: if there is none.
        UnicodeError: if no host can have that name.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def parse_url(text: str) -> httpx.URL:
    """The address that a job gives, its form checked. Nothing is looked up.

    Raises:
        InvalidInput: if it is not https, names no host, holds credentials or is too long.
    """
    if len(text) > MAX_URL:
        raise InvalidInput(f"{FIELD} has {len(text)} characters; at most {MAX_URL} are allowed")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidInput(f"{FIELD} is no address; {_VALID}") from error
    if url.scheme != "https" or not url.host:
        raise InvalidInput(f"{FIELD} is no https address; {_VALID}")
    if url.userinfo:
        raise InvalidInput(f"{FIELD} holds a user name or a password; it must have none")
    return url


class RemoteReferences:
    """Fetches recordings. One serves all jobs; nothing is kept from one fetch for the next."""

    def __init__(
        self,
        timeout_s: float,
        max_bytes: int,
        *,
        resolve: Resolve = resolve,
        allowed: Callable[[str], bool] = is_public,
        context: ssl.SSLContext | None = None,
        ports: Collection[int] = (HTTPS_PORT,),
    ) -> None:
        """Prepares a fetcher; nothing is connected yet.

        Args:
            timeout_s: seconds that one fetch may take, with all its redirects.
            max_bytes: largest recording that is accepted.
            resolve: finds the IP addresses of a host.
            allowed: says whether an IP address may be connected to.
            context: verifies hosts; by default against the authorities that browsers trust.
            ports: that may be connected to.
        """
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._resolve, self._allowed, self._ports = resolve, allowed, ports
        self._context = context or httpx.create_ssl_context(trust_env=False)

    async def fetch(self, url: str, within_s: float | None = None) -> bytes:
        """The bytes at that address. Cancelling the task that awaits this closes the connection.

        Args:
            url: as the job gives it.
            within_s: seconds that the job has left, if it has a deadline.

        Raises:
            InvalidInput: if the address cannot be one of a recording.
            InvalidReference: if there is nothing to be had there, or it is not allowed to.
            JobTimeout: if the job's deadline comes before the fetch's own limit.
        """
        in_time = within_s is None or within_s >= self._timeout_s
        limit = self._timeout_s if within_s is None else min(self._timeout_s, within_s)
        try:
            with anyio.fail_after(limit):
                return await self._follow(parse_url(url))
        except TimeoutError as error:
            if not in_time:
                raise JobTimeout("the job was not done within the time it was given") from error
            raise _refusal(f"the download took longer than {self._timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise _refusal("the download broke off") from error

    async def _follow(self, url: httpx.URL) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            async with self._answer(url) as response:
                if response.status_code not in _REDIRECTS:
                    return await self._read(response)
                url = _redirected(url, response.headers.get("Location", ""))
        raise _refusal(f"the host redirects more than {MAX_REDIRECTS} times")

    @asynccontextmanager
    async def _answer(self, url: httpx.URL) -> AsyncIterator[httpx.Response]:
        """What the host answers, its body unread."""
        addresses = await self._addresses(url)
        # Not httpx's client: it knows proxies, cookies, .netrc and redirects, and has none to give
        # here. A transport for each request: no connection outlives it.
        async with httpx.AsyncHTTPTransport(verify=self._context, trust_env=False) as transport:
            response = await _send(transport, url, addresses)
            try:
                yield response
            finally:
                await response.aclose()

    async def _addresses(self, url: httpx.URL) -> Sequence[str]:
        """The host's IP addresses, all checked."""
        port = url.port or HTTPS_PORT
        if port not in self._ports:
            valid = " or ".join(str(each) for each in self._ports)
            raise _refusal(f"port {port} is not allowed; it must be {valid}")
        try:
            found = await self._resolve(_host(url), port)
        except (OSError, UnicodeError):
            found = ()
        # All of them: a host that is partly private is a private host, or somebody's trick.
        if not found or not all(self._allowed(address) for address in found):
            raise _refusal("the host has no public address")
        return found

    async def _read(self, response: httpx.Response) -> bytes:
        """The body, refused as soon as it is known to be too large."""
        if response.status_code != httpx.codes.OK:
            raise _refusal(f"the host answers with status {response.status_code}, not 200")
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise _refusal("the host sends the recording compressed, which was not asked for")
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > self._max_bytes:
                raise self._too_large()
        if not body:
            raise _refusal("the host sends nothing")
        return bytes(body)

    def _too_large(self) -> InvalidReference:
        megabytes = self._max_bytes / 1e6
        return _refusal(
            f"the recording has more than {self._max_bytes} bytes ({megabytes:g} MB), the limit"
        )


async def _send(
    transport: httpx.AsyncHTTPTransport, url: httpx.URL, addresses: Sequence[str]
) -> httpx.Response:
    """Asks the first of these addresses that can be connected to, by the name of the host."""
    for address in addresses:
        request = httpx.Request(
            "GET",
            url.copy_with(host=address),  # an IP address: nobody resolves anything any more
            headers={"Host": url.netloc.decode("ascii"), **_HEADERS},
            extensions={
                "sni_hostname": _host(url),  # to which the certificate is held
                "timeout": {"connect": CONNECT_S},  # `fetch` has the limit of everything
            },
        )
        try:
            return await transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            continue
    raise _refusal(
        "no secure connection to the host could be made; it must answer, and its certificate must "
        "be valid for its name"
    )


def _redirected(url: httpx.URL, location: str) -> httpx.URL:
    try:
        if not location:
            raise ValueError("a redirect to nowhere")
        return parse_url(str(url.join(location)))
    except (InvalidInput, httpx.InvalidURL, ValueError) as error:
        raise _refusal(f"the host redirects to what is not allowed; {_VALID}") from error


def _host(url: httpx.URL) -> str:
    """As DNS and certificates know it: in ASCII, without the brackets of an IPv6 address."""
    return url.raw_host.decode("ascii")


def _refusal(reason: str) -> InvalidReference:
    return InvalidReference(f"{FIELD}: {reason}")
