"""The program with a slow model of ten letters a second or so: for tests that interrupt it.

    python -m tests.cli.slow_program PIECE_S FIRST_S SCRIPT ARGUMENTS...

Started with a terminal as stdin, it takes that as its controlling terminal, so that Ctrl-C there is a signal here.
"""

from __future__ import annotations

import fcntl
import sys
import termios
import time
from typing import Any

from finback.api import LoadedModel
from finback.cli import chat, models
from finback.cli.app import app
from finback.config import Settings
from finback.engine.engine import Engine
from finback.engine.memory import plan_cache
from tests.cli.conftest import LineChat
from tests.conftest import ByteTokenizer, TinyModel


class SlowModel(TinyModel):
    """Sleeps before each token; longer before the first."""

    def __init__(self, script: str, piece_s: float, first_s: float) -> None:
        super().__init__(script=script)
        self._pauses = (piece_s, first_s)

    def forward(self, batch: Any, cache: Any) -> Any:
        time.sleep(self._pauses[any(segment.prompt for segment in batch.segments)])
        self.batches.clear()  # nobody looks at them, and a soak should see the server's memory alone
        return super().forward(batch, cache)


def load(name: str, settings: Settings) -> LoadedModel:
    piece_s, first_s, script = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    model = SlowModel(script, piece_s, first_s)
    plan = plan_cache(model.config, settings, 1 << 20)
    engine = Engine(model, ByteTokenizer(), settings, plan=plan)
    sys.stderr.write("loaded\n")
    sys.stderr.flush()
    return LoadedModel("tiny", engine, LineChat())


if __name__ == "__main__":
    if sys.stdin.isatty():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    chat.Session.greet = lambda self: None
    models.load = load
    app(args=sys.argv[4:], prog_name="finback")
