"""What commands do with a model's name: describe its record, and have it on this machine before it is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finback.config import Settings

if TYPE_CHECKING:
    from finback.api import LoadedModel
    from finback.hub.store import PulledModel


def record_of(model: PulledModel) -> dict[str, Any]:
    """A pulled model as ``--json`` shows it."""
    return {
        "name": model.name,
        "complete": True,
        "source": model.source,
        "revision": model.revision,
        "pulled_at": model.pulled_at,
        "size_bytes": model.size_bytes,
        "path": str(model.location),
        "linked": model.linked,
        "files": [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in model.files],
    }


def ensure_here(name: str, settings: Settings) -> str:
    """``name``, present on this machine: the default model is fetched unasked, other known ones after a yes."""
    from finback.errors import UnknownModel
    from finback.hub import catalog, resolve

    try:
        resolve(name, settings)
    except UnknownModel:
        entry = catalog.find(name)
        if entry is None or not (entry.name == catalog.DEFAULT_MODEL or _agreed(entry)):
            raise
        _fetch(entry.name, settings)
        return entry.name
    return name


def load(name: str, settings: Settings) -> LoadedModel:
    """The model, loaded, with a word on stderr while that takes its time."""
    from finback.cli.output import stderr

    name = ensure_here(name, settings)
    from finback import api  # heavy: after the name is known to be good

    if not sys.stderr.isatty():
        return api.load(name, settings=settings)
    with stderr().status(f"loading {name} (the first time also prepares its weights)", spinner="dots"):
        return api.load(name, settings=settings)


def sampling_of(name: str, model: LoadedModel) -> dict[str, Any]:
    """The settings that suit a known model, where its files themselves publish none."""
    from finback.engine.request import SamplingParams
    from finback.hub import catalog

    entry = catalog.find(name)
    if entry is None or model.defaults != SamplingParams():
        return {}
    return dict(entry.sampling)


def refuse_unsupported(folder: Path) -> None:
    """UnsupportedModel if a configuration names an architecture that Finback does not run: said before the weights
    are fetched, not after.
    """
    import msgspec

    from finback.errors import MalformedFile, UnsupportedModel
    from finback.weights.config import GQA_TYPES, MLA_TYPES
    from finback.weights.config_fields import RUNS

    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes())
        architecture = config["model_type"]
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as fault:
        raise MalformedFile(f"the model's config.json cannot be read: {fault}") from fault
    if architecture not in GQA_TYPES + MLA_TYPES:
        raise UnsupportedModel(f"Finback does not run models of type {architecture!r}", hint=RUNS)


def warn_if_too_large(name: str) -> None:
    """Say before gigabytes are fetched that this machine cannot hold them in memory."""
    from finback import hardware
    from finback.cli.output import note, size_text
    from finback.hub import catalog

    entry = catalog.find(name)
    if entry is None:
        return
    memory = hardware.memory().total_bytes
    if entry.size_bytes > memory:
        note(f"{entry.name} takes about {size_text(entry.size_bytes)} of memory; this machine has {size_text(memory)}")


def _fetch(name: str, settings: Settings) -> None:
    from finback.cli.progress import pull_progress
    from finback.hub.pull import pull

    pull(name, settings, progress=pull_progress(), inspect=refuse_unsupported)


def _agreed(entry: Any) -> bool:
    """Ask before gigabytes; where nobody can answer, the error's hint says how to pull."""
    import click

    from finback.cli.output import size_text

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    warn_if_too_large(entry.name)
    about = "" if entry.size_is_exact else "about "
    question = f"{entry.name} ({entry.title}) is not on this machine. Fetch {about}{size_text(entry.size_bytes)} now?"
    try:
        return click.confirm(question, default=True, err=True)
    except click.Abort as interrupt:  # Ctrl-C, not a no
        raise click.exceptions.Exit(130) from interrupt
