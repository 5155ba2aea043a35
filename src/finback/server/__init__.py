"""Serves a loaded model over HTTP in the dialects that clients already speak."""

from __future__ import annotations

import ipaddress
import resource
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from finback.errors import ConfigError

if TYPE_CHECKING:
    from finback.api import LoadedModel
    from finback.config import Settings


def run(model: LoadedModel, settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. ``on_ready`` is called with the base URL once requests are taken."""
    require_guard(settings.host, settings.home)
    _keep_memory_off_the_disk()
    from finback.meter.books import open_books
    from finback.meter.ledger import Ledger
    from finback.meter.money import prices_of
    from finback.server import logs
    from finback.server.app import create_app
    from finback.server.edge import Gate
    from finback.server.keys import KeyStore
    from finback.server.listener import Listener, listen, require_free
    from finback.server.presence import announced
    from finback.server.worker import EngineWorker

    require_free(settings.host, settings.port)
    prices, gate = prices_of(settings), Gate()
    worker = EngineWorker(model.engine, model.renew)
    keys = KeyStore(settings.home)
    local_key = keys.create_passing("finback ps")
    app = create_app(
        model,
        worker,
        keys,
        Ledger(open_books(settings)),
        gate=gate,
        prices=prices,
        always_keyed=not is_loopback(settings.host),
        max_body_bytes=settings.max_body_mib << 20,
    )
    config = listen(app, settings)
    logs.set_up(settings.log_format)
    with ExitStack() as stack:

        def ready(url: str) -> None:
            here = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
            record = {"url": here, "model": model.name, "key": local_key}
            stack.enter_context(announced(settings.home, record))
            if on_ready is not None:
                on_ready(url)

        Listener(config, gate, worker, grace_s=settings.grace_s, on_ready=ready).run()


def _keep_memory_off_the_disk() -> None:
    """No core dumps: they would hold prompts, answers and keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


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
