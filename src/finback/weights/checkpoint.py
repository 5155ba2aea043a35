"""A checkpoint as published: what its files say, and the bytes of its tensors on demand.

``open_checkpoint`` reads headers only. It accepts a GGUF file (or any part of a split one), a ``.safetensors`` file, or
a folder with either. Nothing in a folder is ever executed: pickled weights and Python files are refused by name,
unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from finback.errors import MalformedFile, MissingTensor, ModelError, UnknownModel, UnsupportedModel
from finback.weights import gguf, safetensors
from finback.weights.source import (
    Bytes,
    SourceFile,
    TensorInfo,
    digest,
    empty_bytes,
    look_at,
    member,
    parse_json,
    quoted,
    read_small,
)

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

CONFIG_NAME = "config.json"
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
MAX_CONFIG_BYTES = 16 << 20
MAX_SIDE_FILE_BYTES = 64 << 20
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")


@dataclass(frozen=True)
class Checkpoint:
    """The files of one model, checked. Invariant: every tensor lies inside one of ``sources``."""

    kind: Literal["gguf", "safetensors"]
    path: Path
    name: str
    metadata: Mapping[str, Any]  # GGUF key-values: int, float, bool, str and lists of them
    hf_config: dict[str, Any]  # config.json; {} for GGUF
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, Path]  # side files that are there
    sources: Mapping[Path, SourceFile] = field(repr=False)
    digests: tuple[bytes, ...] = field(repr=False)  # of the headers, and of config.json

    def read(self, name: str, rows: slice | None = None, *, out: Bytes | None = None) -> Bytes:
        """The published bytes of a tensor, or of some of its rows (all dimensions but the last, flattened).

        ``out`` may be a contiguous array of the right size to read into.
        """
        tensor = self.tensor(name)
        start, stop = _row_range(tensor, rows)
        nbytes = (stop - start) * tensor.row_bytes
        target = empty_bytes(nbytes, f"tensor {quoted(name)}") if out is None else out
        if target.nbytes != nbytes:
            raise ValueError(f"out has {target.nbytes} bytes; rows {start} to {stop} of {name} have {nbytes}")
        self.sources[tensor.path].read_into(tensor.offset + start * tensor.row_bytes, target)
        return target

    def tensor(self, name: str) -> TensorInfo:
        """Where a tensor lies; MissingTensor if the files do not have it."""
        try:
            return self.tensors[name]
        except KeyError:
            raise MissingTensor(f"{self.path} has no tensor {quoted(name)}") from None

    def side_text(self, name: str) -> str:
        """The text of a side file that is in ``files``."""
        try:
            return read_small(self.files[name], MAX_SIDE_FILE_BYTES).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedFile(f"{self.files[name]} is not UTF-8") from None

    def side_json(self, name: str) -> dict[str, Any]:
        """A side file as a JSON object; {} if it is not there."""
        if name not in self.files:
            return {}
        return parse_json(read_small(self.files[name], MAX_SIDE_FILE_BYTES), str(self.files[name]))

    def fingerprint(self) -> str:
        """Changes when the files do: headers, sizes and times, not the weights themselves."""
        files = (f"{s.path.name} {s.size} {s.mtime_ns}".encode() for s in self.sources.values())
        return digest(self.kind.encode(), *files, *self.digests)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the model at ``path``: a .gguf file, a .safetensors file, or a folder."""
    path = Path(path)
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _open_file(path: Path) -> Checkpoint:
    if path.suffix.lower() in PICKLED_SUFFIXES:
        raise _pickled(path)
    source = look_at(path)
    if path.suffix == ".safetensors":
        headers = (safetensors.read_header(source),)
        return _from_safetensors(path, path.parent, headers, path.stem)
    if path.suffix == ".gguf" or (source.size >= 4 and source.read(0, 4) == gguf.MAGIC):
        return _from_gguf(path, gguf.read_model(path))
    raise UnsupportedModel(f"{path} is neither GGUF nor safetensors")


def _open_folder(folder: Path) -> Checkpoint:
    names = sorted(entry.name for entry in folder.iterdir())
    if safetensors.INDEX_NAME in names or any(name.endswith(".safetensors") for name in names):
        return _from_safetensors(folder, folder, safetensors.read_folder(folder), folder.resolve().name)
    models = [name for name in names if name.endswith(".gguf")]
    if len({gguf.model_name(Path(name)) for name in models}) > 1:
        raise UnknownModel(
            f"{folder} holds {len(models)} GGUF files", hint=f"name one of them, such as {quoted(models[0])}"
        )
    if models:
        return _from_gguf(folder / models[0], gguf.read_model(folder / models[0]))
    if any(name.endswith(PICKLED_SUFFIXES) for name in names):
        raise _pickled(folder)
    raise UnsupportedModel(f"{folder} holds neither .safetensors nor .gguf files")


def _pickled(path: Path) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path} holds weights only in a pickled format, which can carry code and is never read",
        hint="pull the safetensors or GGUF edition of the model",
    )


def _from_gguf(path: Path, headers: tuple[gguf.GgufHeader, ...]) -> Checkpoint:
    return Checkpoint(
        kind="gguf",
        path=path,
        name=gguf.model_name(path),
        metadata=headers[0].metadata,
        hf_config={},
        tensors=_by_name(headers),
        files=MappingProxyType({}),
        sources=_by_path(headers),
        digests=tuple(header.digest for header in headers),
    )


def _from_safetensors(
    path: Path, folder: Path, headers: tuple[safetensors.SafetensorsHeader, ...], name: str
) -> Checkpoint:
    config = read_small(member(folder, CONFIG_NAME), MAX_CONFIG_BYTES) if (folder / CONFIG_NAME).exists() else b"{}"
    return Checkpoint(
        kind="safetensors",
        path=path,
        name=name,
        metadata=MappingProxyType({}),
        hf_config=parse_json(config, str(folder / CONFIG_NAME)),
        tensors=_by_name(headers),
        files=MappingProxyType({n: member(folder, n) for n in SIDE_FILES if (folder / n).exists()}),
        sources=_by_path(headers),
        digests=(*(header.digest for header in headers), config),
    )


Headers = tuple[gguf.GgufHeader, ...] | tuple[safetensors.SafetensorsHeader, ...]


def _by_name(headers: Headers) -> Mapping[str, TensorInfo]:
    return MappingProxyType({tensor.name: tensor for header in headers for tensor in header.tensors})


def _by_path(headers: Headers) -> Mapping[Path, SourceFile]:
    return MappingProxyType({header.source.path: header.source for header in headers})


def _row_range(tensor: TensorInfo, rows: slice | None) -> tuple[int, int]:
    if rows is None:
        return 0, tensor.rows
    start, stop = rows.start or 0, tensor.rows if rows.stop is None else rows.stop
    if rows.step not in (None, 1) or not 0 <= start <= stop <= tensor.rows:
        raise ValueError(f"{tensor.name} has rows 0 to {tensor.rows}, in order; {rows} is not among them")
    return start, stop
