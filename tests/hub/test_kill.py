"""Pulls killed with SIGKILL at random points: what is under a final name is always right, and nothing received is
lost.

A small process with everything imported forks one child per attempt, so that an attempt costs milliseconds and the
kill can land anywhere: while listing, while writing, while renaming, while recording.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finback.config import Settings
from finback.hub.store import Store
from tests.hub.conftest import REPO, FakeHub, Fault

KILLS = int(os.environ.get("KILLS", "25"))
RANDOM = random.Random(3)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": RANDOM.randbytes(700_000),
    "model-00002-of-00002.safetensors": RANDOM.randbytes(600_000),
}
SLOW = Fault(chunk_bytes=1 << 14, pause_s=0.001)
ATTEMPTS = """
import os, sys
from pathlib import Path
import httpx2, msgspec
from finback.config import Settings
from finback.hub import http, huggingface, pull

settings, environ = Settings(home=Path(sys.argv[1])), {"HF_ENDPOINT": sys.argv[2]}
print("ready", flush=True)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        pull.pull(sys.argv[3], settings, environ=environ)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Attempts:
    """Starts pulls in children of their own."""

    def __init__(self, home: Path, hub: FakeHub) -> None:
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", ATTEMPTS, str(home), hub.url, REPO]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        assert self._line() == "ready"

    def run(self, kill_after_s: float | None) -> int:
        """The exit status of one pull, killed after a while unless it was faster."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        child = int(self._line())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return int(self._line())

    def close(self) -> None:
        self._process.communicate(timeout=20)

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


@pytest.fixture
def attempts(hub: FakeHub, settings: Settings) -> Iterator[Attempts]:
    hub.files = FILES
    for path in FILES:
        hub.fail(path, *[SLOW] * 10 * (KILLS + 1))
    started = Attempts(settings.home, hub)
    yield started
    started.close()


def check_nothing_wrong_is_visible(settings: Settings) -> int:
    """Bytes of the model that are on disk, under final names or as parts."""
    folder = Store(settings.home).files_folder(f"hf.co/{REPO}")
    size = 0
    for path, content in FILES.items():
        part = folder / (path + ".part")
        if (folder / path).exists():
            assert (folder / path).read_bytes() == content
            size += len(content)
        elif part.exists():
            assert content.startswith(part.read_bytes())
            size += part.stat().st_size
    return size


def test_killed_pulls_lose_nothing_and_show_nothing_wrong(attempts: Attempts, hub: FakeHub, settings: Settings) -> None:
    store = Store(settings.home)
    choose = random.Random(4)
    before, killed = 0, 0
    for _ in range(KILLS):
        killed += attempts.run(choose.uniform(0.0, 0.05)) == -signal.SIGKILL
        size = check_nothing_wrong_is_visible(settings)
        assert size >= before
        before = size
        model = store.find(f"hf.co/{REPO}")
        if model:
            assert size == model.size_bytes
            store.remove(model.name)
            before = 0
    assert attempts.run(None) == 0
    assert check_nothing_wrong_is_visible(settings) == sum(map(len, FILES.values()))
    assert store.find(f"hf.co/{REPO}")
    assert killed > KILLS // 4
