"""Who may ask what: each route has a policy, and nothing is read of a request before its policy allows it.

A server asks for keys from the moment the first one exists. Until then it is open, on loopback only, and trusts what
comes from this machine; but a web page in a browser on this machine is not to be trusted, so requests that were made
for another site's name (DNS rebinding) or by another site's page (cross-site posts) are refused.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from finback.errors import FinbackError, Forbidden, LimitReached, Unauthorized
from finback.server.keys import Key, KeyStore
from finback.server.limits import MINUTE_S, Clock
from finback.server.replies import error_response

log = logging.getLogger("finback.server")

NO_ROUTE = "none"
REFUSED_PER_MINUTE = 300  # keys of one address that are answered with 401; then it is 429
MAX_ADDRESSES = 10_000


class Policy(Enum):
    """What a route asks of who calls it. METERED routes also hold the key to its limits."""

    OPEN = "anybody"
    KEYED = "any valid key"
    METERED = "any valid key within its limits"
    ADMIN = "a valid key made with --admin"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the route table."""

    method: str
    path: str
    policy: Policy
    handler: Callable[[Request], Awaitable[Response]]

    @property
    def route(self) -> Route:
        """The row as the framework wants it."""
        return Route(self.path, self.handler, methods=[self.method])


class Guard:
    """Lets a request through when its route's policy allows it; its key is then in ``scope["key"]``."""

    def __init__(self, app: ASGIApp, *, endpoints: Sequence[Endpoint], keys: KeyStore, always: bool) -> None:
        """``always``: ask for keys even when there are none; for servers that other machines can reach."""
        self._app = app
        self._policies = [(endpoint.route, endpoint.policy) for endpoint in endpoints]
        self._keys = keys
        self._always = always
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403."""
        app = self._app
        if scope["type"] == "http":
            try:
                scope["key"] = self._admit(scope)
            except FinbackError as error:
                app = error_response(error)
        await app(scope, receive, send)

    def _admit(self, scope: Scope) -> Key | None:
        policy, scope["route_path"] = self._policy(scope)
        if policy is Policy.OPEN:
            return None
        headers = Request(scope).headers
        if not (self._always or self._keys.any):
            _refuse_other_sites(headers.get("host", ""), headers.get("origin"))
            return None
        text = _bearer(headers.get("authorization", ""))
        try:
            key = _valid(self._keys, text)
        except Unauthorized:
            self._refusals.count(_address(scope))
            raise
        if policy is Policy.ADMIN and not key.admin:
            raise Forbidden("this needs a key made with `finback keys create --admin`")
        return key

    def _policy(self, scope: Scope) -> tuple[Policy, str]:
        """The policy and the path of the route; where there is none a key is asked for, and then comes 404."""
        for route, policy in self._policies:
            if route.matches(scope)[0] is Match.FULL:
                return policy, route.path
        return Policy.KEYED, NO_ROUTE


class Refusals:
    """Keys that were refused within a minute, by the address that sent them: too many of them are told to wait.

    Only refusals are: a good key is served whatever else comes from its address, which may be a proxy's. Guessing is
    no danger, a key has 256 random bits; but a client that is stuck on a bad key should slow down, and whoever reads
    the log should know.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()  # (since when, how many), oldest first

    def count(self, address: str) -> None:
        """Note one; LimitReached if there were too many already."""
        now = self._clock()
        since, count = self._counts.pop(address, (now, 0))
        if now >= since + MINUTE_S:
            since, count = now, 0
        self._counts[address] = since, count + 1
        if len(self._counts) > MAX_ADDRESSES:
            self._counts.popitem(last=False)
        if count == REFUSED_PER_MINUTE:
            log.warning("more than %d wrong keys from %s within a minute", REFUSED_PER_MINUTE, address)
        if count >= REFUSED_PER_MINUTE:
            raise LimitReached("too many wrong keys from this address", retry_after_s=since + MINUTE_S - now)


def _address(scope: Scope) -> str:
    """Where a request is from. Of IPv6 the network, since whoever has one address there has them all."""
    host = (scope.get("client") or ("", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host if address.version == 4 else str(address.ipv4_mapped)


def _bearer(authorization: str) -> str:
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Unauthorized("this server asks for a key", hint="send it as the header `Authorization: Bearer KEY`")
    return text.strip()


def _valid(keys: KeyStore, text: str) -> Key:
    key = keys.verify(text)
    if key is None:
        raise Unauthorized("the key is not one of this server's")
    if not key.usable:
        raise Unauthorized(f"the key {key.id} {'was revoked' if key.revoked_at is not None else 'has expired'}")
    return key


def _refuse_other_sites(host: str, origin: str | None) -> None:
    names = [_hostname(f"//{host}")] + ([_hostname(origin)] if origin is not None else [])
    for name in names:
        if not _is_local(name):
            raise Forbidden(
                f"a request for or from the site {name[:100]!r} is refused, because this server asks for no keys",
                hint="make a key with `finback keys create`, or call the server by its address",
            )


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return url


def _is_local(name: str) -> bool:
    """Whether no other site can have this name. A rebound site needs a name with a dot."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name.rstrip(".") or name.endswith(".localhost")
    return True
