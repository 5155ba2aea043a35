"""From what a user types to the file or folder that a loader opens, without touching the network."""

from __future__ import annotations

from pathlib import Path

from finback.errors import UnknownModel
from finback.hub import catalog, names
from finback.hub.store import PulledModel, Store


def find_pulled(text: str, store: Store) -> PulledModel | None:
    """The pulled model that ``text`` means: its exact name, (part of) a catalog name, or a repository."""
    candidates = [text, f"local/{text}", *(entry.name for entry in catalog.matches(text))]
    repository = names.parse_repository(text)
    if repository:
        candidates.append(str(repository))
    for name in candidates:
        model = store.find(name)
        if model:
            return model
    return _only_variant(str(repository), store) if repository else None


def locate(text: str, store: Store) -> Path:
    """What to open for ``text``. A pulled name comes first, then a path; UnknownModel says what to do about
    the rest.
    """
    model = find_pulled(text, store)
    if model:
        return _existing(model)
    path = Path(text).expanduser()
    if text and path.exists() and not catalog.matches(text):
        return path
    if names.looks_like_path(text) or text.endswith(".gguf"):
        raise UnknownModel(f"{text}: no such file or folder")
    raise unknown(text, store)


def unknown(text: str, store: Store) -> UnknownModel:
    """The error for a name that stands for nothing here: not pulled, misnamed, or unheard of."""
    entry = catalog.find(text)
    if entry:
        return UnknownModel(f"{entry.name} is not on this machine yet", hint=f"finback pull {entry.name}")
    true = catalog.true_name(text)
    if true:
        return UnknownModel(
            f"{text} is not DeepSeek-R1: models of this size are distillations into other models",
            hint=f"finback pull {true}",
        )
    if names.parse_repository(text) and not text.startswith("local/"):
        return UnknownModel(f"{text} is not on this machine yet", hint=f"finback pull {text}")
    several = catalog.matches(text)
    if several:
        choices = ", ".join(entry.name for entry in several)
        return UnknownModel(f"{text} is the name of several models", hint=f"choose one: {choices}")
    near = catalog.nearest(text, [model.name for model in store.models()])
    if near:
        return UnknownModel(f"no model is called {text[:200]!r}", hint=f"near it: {', '.join(near)}")
    return UnknownModel(f"no model is called {text[:200]!r}", hint="`finback list --catalog` shows the known models")


def _existing(model: PulledModel) -> Path:
    if not model.location.exists():
        moved = "its files were moved or deleted"
        raise UnknownModel(f"{model.name}: {model.location} is gone: {moved}", hint=f"finback rm {model.name}")
    return model.location


def _only_variant(name: str, store: Store) -> PulledModel | None:
    variants = [model for model in store.models() if model.name.startswith((name + ":", name + "@"))]
    return variants[0] if len(variants) == 1 else None
