"""Ctrl-C in a process of its own: it stops an answer and not a conversation; elsewhere it means status 130."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finback.hub.store import Store
from tests.hub.conftest import REPO, FakeHub, Fault

LETTERS = "a b c d e f g h i j k l m n z"
DEADLINE_S = 30.0


def environment(**others: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"} | others


def command(piece_s: float, first_s: float, script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.cli.slow_program", str(piece_s), str(first_s), script, *arguments]


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, arguments: list[str], environ: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> str:
        """What was printed since the last wait, up to and with ``text``."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            assert time.monotonic() < deadline, f"waited for {text!r}, saw {self.seen!r}"
            if select.select([self._ours], [], [], 0.5)[0]:
                self.seen += os.read(self._ours, 4096).decode(errors="replace")
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def end(self) -> int:
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A conversation with a model that writes the alphabet, after a thought, one character in 50 ms."""
    arguments = command(0.05, 0.0, f"[hm]{LETTERS}", "chat")
    started = Terminal(arguments, environment(FINBACK_HOME=str(tmp_path)))
    yield started
    started.close()


def test_ctrl_c_stops_the_answer_and_not_the_conversation(terminal: Terminal) -> None:
    terminal.wait_for(">>> ")
    terminal.type("hello\r")
    terminal.wait_for("\x1b[2mhm\x1b[0m")  # dimmed
    terminal.wait_for("c")
    terminal.type("\x03")
    said = terminal.wait_for("(stopped)")
    assert "z" not in said
    terminal.wait_for(">>> ")
    terminal.type("/stats\r")
    terminal.wait_for("(stopped)")
    terminal.wait_for(">>> ")
    terminal.type("again\r")
    terminal.wait_for(LETTERS[-3:])
    terminal.wait_for(">>> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_several_lines_are_one_message(terminal: Terminal) -> None:
    terminal.wait_for(">>> ")
    terminal.type('"""one\r')
    terminal.wait_for("... ")
    terminal.type('two"""\r')
    terminal.wait_for(LETTERS[-3:])
    terminal.wait_for(">>> ")
    terminal.type("/exit\r")
    assert terminal.end() == 0


def test_ctrl_c_while_the_prompt_is_read(tmp_path: Path) -> None:
    arguments = command(0.0, 0.6, LETTERS, "chat")
    program = Terminal(arguments, environment(FINBACK_HOME=str(tmp_path)))
    program.wait_for(">>> ")
    program.type("hello\r")
    program.wait_for("hello\r\n")
    time.sleep(0.2)
    program.type("\x03")
    assert "a" not in program.wait_for("(stopped)").replace("(stopped)", "").replace("hello", "")
    program.wait_for(">>> ")
    program.type("\x04")
    assert program.end() == 0
    program.close()


@contextmanager
def piped(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A slow program between pipes, gone at the end."""
    pipe = subprocess.PIPE
    started = command(0.05, 0.0, LETTERS, *arguments)
    with subprocess.Popen(started, stdin=pipe, stdout=pipe, stderr=pipe, env=environment()) as process:
        try:
            yield process
        finally:
            process.kill()


def test_an_interrupted_run_is_status_130() -> None:
    with piped("run", "-") as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"hello")
        process.stdin.close()
        process.stdin = None
        assert process.stdout.read(3) == b"a b"
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 130
        assert b"z" not in rest
        assert complaints == b"loaded\n"


def test_an_interrupted_piped_conversation_goes_on() -> None:
    with piped("chat") as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        assert process.stdout.read(3) == b"a b"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        first, second = rest.decode().splitlines()
        assert "z" not in first
        assert second == LETTERS


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_server_ends_when_told_to(number: int, status: int) -> None:
    with piped("serve", "--port", "0") as process:
        assert process.stderr
        process.stderr.readline()  # loaded
        said = process.stderr.readline().decode()
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", said)
        assert url, said
        with urllib.request.urlopen(f"{url[0]}/models", timeout=DEADLINE_S) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny"
        process.send_signal(number)
        _, complaints = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == status
        assert b"Traceback" not in complaints


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    yield server
    server.close()


def test_an_interrupted_pull_is_status_130_and_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    content = random.Random(5).randbytes(500_000)
    hub.files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": content}
    hub.fail("model.safetensors", Fault(chunk_bytes=10_000, pause_s=0.05))
    environ = environment(FINBACK_HOME=str(tmp_path), HF_ENDPOINT=hub.url)
    script = [sys.executable, "-c", "from finback.cli import main; main()", "pull", REPO]
    part = Store(tmp_path).files_folder(f"hf.co/{REPO}") / "model.safetensors.part"
    with subprocess.Popen(script, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environ) as process:
        deadline = time.monotonic() + DEADLINE_S
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 130
    assert b"Traceback" not in complaints
    assert 0 < part.stat().st_size < len(content)
    again = subprocess.run(script, capture_output=True, env=environ, timeout=DEADLINE_S, stdin=subprocess.DEVNULL)
    assert again.returncode == 0
    assert part.with_suffix("").read_bytes() == content
