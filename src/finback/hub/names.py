"""Names from outside, made harmless: what a model reference means, and which file names may touch the disk.

A reference is a catalog name, a Hugging Face repository or a local path. A name is never a path: whatever a
hub lists as a file name goes through :func:`safe_relative` before it is joined to a folder.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from finback.errors import UnknownModel
from finback.hub.catalog import Repository

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REPOSITORY = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?::(?P<selection>[^@\s]{{1,255}}))?(?:@(?P<revision>\S{{1,255}}))?"
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")
_HOSTS = ("hf.co", "huggingface.co", "www.huggingface.co")
_MAX_PART_BYTES = 200
_MAX_PARTS = 6

# Only data: nothing of these kinds is ever executed. `chat_template.jinja` is rendered by a sandbox that
# reaches no Python.
_DATA_SUFFIXES = (".safetensors", ".gguf", ".json")
_DATA_NAMES = ("chat_template.jinja",)


def safe_relative(text: str) -> Path:
    """``text`` as a relative path that stays where it is put; UnknownModel if it is anything else."""
    parts = text.split("/")
    if len(parts) > _MAX_PARTS or not all(_is_safe_part(part) for part in parts):
        raise UnknownModel(f"refusing the file name {text[:200]!r}: it is not a plain relative path")
    return Path(*parts)


def _is_safe_part(part: str) -> bool:
    plain = part.isprintable() and not set(part) & set('\\:*?"<>|')
    return plain and not part.startswith((".", "-", "~")) and 0 < len(part.encode()) <= _MAX_PART_BYTES


def is_data_file(path: str) -> bool:
    """Whether a listed file is of a kind that Finback fetches at all."""
    name = PurePosixPath(path).name
    return name.endswith(_DATA_SUFFIXES) or name in _DATA_NAMES


def looks_like_path(text: str) -> bool:
    """Whether ``text`` can only be meant as a path on this machine."""
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..")


def parse_repository(text: str) -> Repository | None:
    """``hf.co/owner/name[:selection][@revision]``, the same without the host, or a page's address; None if it
    is neither.
    """
    body = _strip_host(text)
    if body is None:
        return None
    body, selection, revision = _split_page(body)
    matched = _REPOSITORY.fullmatch(body)
    if not matched:
        return None
    selection = selection or matched["selection"]
    revision = revision or matched["revision"] or "main"
    check_revision(revision)
    if selection and selection.lower().endswith(".gguf"):
        safe_relative(selection)
    return Repository(matched["repo"], plain_selection(selection), revision)


def plain_selection(selection: str | None) -> str | None:
    """One spelling per choice: formats in capitals, file names as they are."""
    if selection is None or selection.lower().endswith(".gguf"):
        return selection
    return selection.upper()


def split_stem(path: str) -> str:
    """``path`` without the part's number of a split GGUF file: equal for all parts of one model."""
    return SPLIT.sub(r"-of-\2", path)


def split_parts(path: Path) -> list[Path]:
    """All parts of the GGUF model that ``path`` is one part of, in order; just itself if it is not split."""
    stem = split_stem(path.name)
    if stem == path.name:
        return [path]
    return sorted(other for other in path.parent.glob("*.gguf") if split_stem(other.name) == stem)


def check_revision(revision: str) -> str:
    """``revision`` if it can be a branch, tag or commit."""
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise UnknownModel(f"{revision!r} is not a branch, tag or commit")
    return revision


def names_a_host(text: str) -> bool:
    """Whether ``text`` says by itself that it lives on the hub."""
    return text.startswith(("http://", "https://")) or text.split("/")[0] in _HOSTS


def _strip_host(text: str) -> str | None:
    if text.startswith(("http://", "https://")):
        address = urlsplit(text)
        if address.hostname not in _HOSTS:
            raise UnknownModel(
                f"cannot pull from {text[:200]}: it is not a page of the Hugging Face hub",
                hint="for another server, set HF_ENDPOINT and name the model as owner/name",
            )
        return unquote(address.path).strip("/")
    host, _, rest = text.partition("/")
    return rest if host in _HOSTS else text


def _split_page(body: str) -> tuple[str, str | None, str | None]:
    """owner/name/tree/REV and owner/name/(blob|resolve)/REV/FILE, as copied from a browser."""
    parts = body.split("/")
    if len(parts) >= 4 and parts[2] == "tree":
        return "/".join(parts[:2]), None, "/".join(parts[3:])
    if len(parts) >= 5 and parts[2] in ("blob", "resolve"):
        return "/".join(parts[:2]), "/".join(parts[4:]), parts[3]
    return body, None, None
