"""How a pull tells its caller where it stands: one small interface, silent by default.

The hub knows no terminal. A face passes its own subclass; a library user passes nothing and hears nothing.
"""

from __future__ import annotations


class Progress:
    """Receives the course of one pull. Every method may be called from the pulling thread only."""

    def begin(self, label: str, total_bytes: int) -> None:
        """A transfer of ``total_bytes`` starts."""

    def found(self, count_bytes: int) -> None:
        """So many bytes need not be transferred: an earlier attempt left them on disk."""

    def file(self, path: str) -> None:
        """The bytes from now on belong to ``path``."""

    def advance(self, count_bytes: int) -> None:
        """So many more bytes are on disk (negative: bytes were thrown away and will come again)."""

    def note(self, text: str) -> None:
        """Something the user should know: a retry, a wait, a choice that was made."""

    def end(self) -> None:
        """The transfer is over, however it went."""


SILENT = Progress()
