"""Serves a loaded model over HTTP in the dialects that clients already speak."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from finback.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn

    from finback.api import LoadedModel

GRACE_S = 30  # running requests may finish for this long after SIGTERM


def run(model: LoadedModel, *, host: str, port: int, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. ``on_ready`` is called with the base URL once requests are taken."""
    require_guard(host, model.settings.home)
    import uvicorn

    from finback.meter.ledger import Ledger
    from finback.meter.money import prices_of
    from finback.meter.sqlite import SqliteBooks
    from finback.server.app import create_app
    from finback.server.keys import KeyStore
    from finback.server.worker import EngineWorker

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and on_ready is not None:
                on_ready(f"http://{f'[{host}]' if ':' in host else host}:{_bound_port(self, port)}")

    _require_free(host, port)
    home, prices = model.settings.home, prices_of(model.settings)
    keys, ledger = KeyStore(home), Ledger(SqliteBooks(home))
    worker, always_keyed = EngineWorker(model.engine, model.renew), not is_loopback(host)
    app = create_app(model, worker, keys, ledger, prices=prices, always_keyed=always_keyed)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=GRACE_S)
    AnnouncingServer(config).run()


def _bound_port(server: uvicorn.Server, asked: int) -> int:
    """The port in use: the system picks one when 0 was asked for."""
    sockets = [socket for listener in server.servers for socket in listener.sockets]
    return int(sockets[0].getsockname()[1]) if sockets else asked


def _require_free(host: str, port: int) -> None:
    """Raise ConfigError now rather than a log line later when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another --port"
            ) from None


def require_guard(host: str, home: Path) -> None:
    """Raise ConfigError if other machines could use the server without a key."""
    from finback.server.keys import KeyStore

    if not is_loopback(host) and not KeyStore(home).any_usable:
        raise ConfigError(
            f"{host} can be reached from other machines, and there is no key yet to ask for",
            hint="make one with `finback keys create NAME`, or bind to 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine alone; ConfigError when it is no address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ConfigError(f"{host!r} is not an IP address", hint="use 127.0.0.1, 0.0.0.0, ::1 or ::") from None
