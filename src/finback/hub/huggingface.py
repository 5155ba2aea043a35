"""What a Hugging Face repository holds and which of it a model needs: listing, digests, and the choice of
files.

The revision is resolved to a commit first, so that all files of one pull belong together. Big files carry
their SHA-256 in the listing; small ones their git blob id, which is checked in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from finback.errors import DownloadError, UnknownModel, UnsupportedModel
from finback.hub.catalog import Repository
from finback.hub.http import Http, RemoteFile
from finback.hub.names import SPLIT, check_revision, is_data_file, safe_relative, split_stem
from finback.hub.partial import Digest

_T = TypeVar("_T")
_MAX_FILES = 20_000
_NEXT_PAGE = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
_GGUF_FORMAT = re.compile(
    r"(?i)(?:^|[-._/])((?:UD-)?"
    r"(?:IQ\d\w*|TQ\d\w*|Q\d(?:_K(?:_X?[SML]{1,2})?|_[01])?(?:_L)?|BF16|F16|F32|MXFP4(?:_MOE)?))"
    r"(?=[-._/]|$)"
)
_UNREADABLE = ("IQ", "TQ", "UD-IQ", "UD-TQ")
_PREFERRED = ("Q4_K_M", "Q4_0", "Q4_1", "Q8_0", "BF16", "F16", "F32")
_SIDE_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "chat_template.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    }
)


class _Lfs(msgspec.Struct):
    oid: str
    size: int


class _Node(msgspec.Struct):
    type: str
    path: str
    size: int = 0
    oid: str = ""
    lfs: _Lfs | None = None


class _Revision(msgspec.Struct):
    sha: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of one pull. ``entry`` is what a loader opens: the first GGUF file, or "" for the folder."""

    files: tuple[RemoteFile, ...]
    entry: str
    selection: str | None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def resolve_commit(http: Http, repository: Repository) -> str:
    """The commit that the repository's revision stands for now."""
    revision = quote(check_revision(repository.revision), safe="")
    body, _ = http.get(f"{http.endpoint}/api/models/{repository.repo}/revision/{revision}", str(repository))
    commit = _decode(body, _Revision, repository).sha
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise DownloadError(f"{repository}: {commit[:80]!r} is not a commit")
    return commit


def list_files(http: Http, repository: Repository, commit: str) -> list[RemoteFile]:
    """Every data file of the repository at ``commit``, page by page; names that are not plain are refused."""
    url: str | None = f"{http.endpoint}/api/models/{repository.repo}/tree/{commit}?recursive=true"
    files: list[RemoteFile] = []
    while url:
        body, headers = http.get(url, str(repository))
        nodes = _decode(body, list[_Node], repository)
        files += [_remote(http, repository, commit, node) for node in nodes if _is_wanted(node)]
        if len(files) > _MAX_FILES:
            raise DownloadError(f"{repository}: lists more than {_MAX_FILES} files")
        url = _next_page(url, headers.get("link", ""))
    return files


def choose(repository: Repository, files: Sequence[RemoteFile]) -> Choice:
    """The files to fetch: one GGUF variant, or the safetensors model with its configuration and tokenizer."""
    variants = _gguf_variants(files)
    if repository.selection:
        return _choose_variant(repository, variants, repository.selection)
    tensors = _safetensors(files)
    if tensors:
        return Choice((*_side_files(files), *tensors), "", None)
    if variants:
        return _choose_default(repository, variants)
    raise UnsupportedModel(
        f"{repository} holds neither safetensors nor GGUF files",
        hint="pickled weights (*.bin, *.pt) are never loaded; look for a safetensors or GGUF version",
    )


def gguf_format(path: str) -> str | None:
    """The format that a GGUF file's name states, in capitals (Q4_K_M, IQ2_XS, BF16), or None."""
    found = _GGUF_FORMAT.findall(split_stem(path).removesuffix(".gguf"))
    return found[-1].upper() if found else None


def _decode(body: bytes, kind: type[_T], repository: Repository) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as fault:
        raise DownloadError(
            f"{repository}: the hub's answer cannot be read ({fault})", hint="check HF_ENDPOINT if it is set"
        ) from fault


def _is_wanted(node: _Node) -> bool:
    hidden = any(part.startswith(".") and part not in (".", "..") for part in node.path.split("/"))
    return node.type == "file" and is_data_file(node.path) and not hidden


def _remote(http: Http, repository: Repository, commit: str, node: _Node) -> RemoteFile:
    safe_relative(node.path)
    size = node.lfs.size if node.lfs else node.size
    if not 0 <= size < 1 << 45:
        raise DownloadError(f"{repository}: {node.path} cannot have {size} bytes")
    url = f"{http.endpoint}/{repository.repo}/resolve/{commit}/{quote(node.path)}"
    return RemoteFile(node.path, url, size, _digest(repository, node))


def _digest(repository: Repository, node: _Node) -> Digest:
    oid, length, algorithm = (node.lfs.oid, 64, "sha256") if node.lfs else (node.oid, 40, "git-sha1")
    oid = oid.removeprefix("sha256:").lower()
    if not re.fullmatch(rf"[0-9a-f]{{{length}}}", oid):
        raise DownloadError(f"{repository}: {node.path} is listed without a usable digest")
    return Digest(algorithm, oid)


def _next_page(url: str, link: str) -> str | None:
    """The next page, if it is on the same server: a listing may not wander off."""
    matched = _NEXT_PAGE.search(link)
    if not matched:
        return None
    target = urljoin(url, matched[1])
    here, there = urlsplit(url), urlsplit(target)
    return target if (here.scheme, here.netloc) == (there.scheme, there.netloc) else None


def _side_files(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    return [file for file in files if file.path in _SIDE_FILES]


def _safetensors(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The weights at the top level; where a repository has more than the model's own shards, only those."""
    top = [file for file in files if file.path.endswith(".safetensors") and "/" not in file.path]
    own = [file for file in top if file.path.startswith("model")]
    return own or top


def _gguf_variants(files: Sequence[RemoteFile]) -> dict[str, list[RemoteFile]]:
    """GGUF files by model: the parts of a split file belong together; projectors of image models are left
    out.
    """
    variants: dict[str, list[RemoteFile]] = {}
    for file in files:
        if file.path.endswith(".gguf") and "mmproj" not in file.path.lower():
            variants.setdefault(split_stem(file.path), []).append(file)
    return {stem: sorted(parts, key=lambda file: file.path) for stem, parts in variants.items()}


def _choose_variant(repository: Repository, variants: dict[str, list[RemoteFile]], selection: str) -> Choice:
    wanted = selection.lower()
    found = [stem for stem, parts in variants.items() if _is_selected(stem, parts, wanted)]
    if len(found) == 1:
        return _variant(repository, variants[found[0]], selection)
    if found:
        raise UnknownModel(
            f"{repository.repo} has several files that match {selection!r}",
            hint=f"name one: {_listed(found)}",
        )
    raise UnknownModel(
        f"{repository.repo} has no GGUF file for {selection!r}",
        hint=f"it has: {_listed(_labels(variants)) or 'none'}",
    )


def _is_selected(stem: str, parts: list[RemoteFile], wanted: str) -> bool:
    names = {stem.lower(), PurePosixPath(stem).name.lower(), *(part.path.lower() for part in parts)}
    return wanted in names or (gguf_format(stem) or "").lower() == wanted


def _choose_default(repository: Repository, variants: dict[str, list[RemoteFile]]) -> Choice:
    if len(variants) == 1:
        stem, parts = next(iter(variants.items()))
        return _variant(repository, parts, gguf_format(stem) or PurePosixPath(stem).name)
    for wanted in _PREFERRED:
        found = [stem for stem in variants if gguf_format(stem) == wanted]
        if len(found) == 1:
            return _variant(repository, variants[found[0]], wanted)
    raise UnknownModel(
        f"{repository.repo} holds several GGUF files",
        hint=f"add one of these after a colon: {_listed(_labels(variants))}",
    )


def _variant(repository: Repository, parts: list[RemoteFile], selection: str) -> Choice:
    stated = gguf_format(parts[0].path) or ""
    if stated.startswith(_UNREADABLE):
        raise UnsupportedModel(
            f"{parts[0].path} is in format {stated}, which Finback does not read",
            hint="choose a Q2_K to Q8_0, MXFP4, BF16, F16 or F32 file",
        )
    _check_complete(repository, parts)
    return Choice(tuple(parts), parts[0].path, selection)


def _check_complete(repository: Repository, parts: list[RemoteFile]) -> None:
    split = [SPLIT.search(part.path) for part in parts]
    numbers = [int(found[1]) for found in split if found]
    totals = {int(found[2]) for found in split if found}
    if numbers and (numbers != list(range(1, len(numbers) + 1)) or totals != {len(numbers)}):
        raise DownloadError(f"{repository}: the parts of {parts[0].path} are not complete at the source")


def _labels(variants: dict[str, list[RemoteFile]]) -> list[str]:
    """What to offer: formats where they tell the files apart, else file names."""
    formats = [gguf_format(stem) for stem in variants]
    unique = all(formats) and len(set(formats)) == len(formats)
    return [label or stem for label, stem in zip(formats, variants, strict=True)] if unique else list(variants)


def _listed(names: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(sorted(names)[:limit]) + more
