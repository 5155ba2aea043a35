"""Who may ask what: each route has a policy, and nothing is read of a request before its policy allows it.

A server asks for keys from the moment the first one exists. Until then it is open, on loopback only, and trusts what
comes from this machine; but a web page in a browser on this machine is not to be trusted, so requests that were made
for another site's name (DNS rebinding) or by another site's page (cross-site posts) are refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from finback.errors import FinbackError, Forbidden, Unauthorized
from finback.server.keys import Key, KeyStore
from finback.server.replies import error_response

NO_ROUTE = "none"


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
        key = _valid(self._keys, headers.get("authorization", ""))
        if policy is Policy.ADMIN and not key.admin:
            raise Forbidden("this needs a key made with `finback keys create --admin`")
        return key

    def _policy(self, scope: Scope) -> tuple[Policy, str]:
        """The policy and the path of the route; where there is none a key is asked for, and then comes 404."""
        for route, policy in self._policies:
            if route.matches(scope)[0] is Match.FULL:
                return policy, route.path
        return Policy.KEYED, NO_ROUTE


def _valid(keys: KeyStore, authorization: str) -> Key:
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Unauthorized("this server asks for a key", hint="send it as the header `Authorization: Bearer KEY`")
    key = keys.verify(text.strip())
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
