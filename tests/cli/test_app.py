"""The program as a whole: help, errors in two lines, statuses, and how little it imports to answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finback import __version__
from finback.errors import ChecksumMismatch, FinbackError
from tests.cli.conftest import Cli
from tests.weights.tiny import write_tiny_gguf

COMMANDS = (
    *("chat", "run", "serve", "pull", "list", "show", "rm", "ps", "usage", "bench", "doctor", "version"),
    *("keys", "config", "completion"),
)


def program(*arguments: str, code: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own; ``code`` runs after it."""
    script = (
        "import sys; sys.argv[0] = 'finback'\nfrom finback.cli import main\ntry:\n main()\nfinally:\n pass\n " + code
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environ
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def test_help_names_every_command(cli: Cli) -> None:
    for arguments in (("--help",), ("-h",)):
        text = cli(*arguments, status=0).out
        assert all(f" {name} " in text for name in COMMANDS)
    assert "Usage" in cli(status=2).err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    text = cli(command, "--help", status=0).out
    assert f"finback {command}" in text


@pytest.mark.parametrize("command", ["list", "show", "pull", "doctor", "bench", "run", "version"])
def test_every_listing_speaks_json(cli: Cli, command: str) -> None:
    assert "--json" in cli(command, "--help", status=0).out


def test_version(cli: Cli) -> None:
    assert cli("--version", status=0).out == f"finback {__version__}\n"
    assert cli("version", status=0).out.startswith(f"finback {__version__} ")
    assert cli("version", "--json", status=0).json["finback"] == __version__


def test_it_is_a_module_too() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "finback", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert done.stdout == f"finback {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("--nonsense",),
        ("list", "--nonsense"),
        ("list", "surplus"),
        ("show",),
        ("rm",),
        ("pull",),
        ("bench", "--gen", "0"),
        ("bench", "--batch", "x"),
        ("serve", "--port", "70000"),
        ("chat", "--threads", "many"),
    ],
)
def test_wrong_usage_is_status_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    outcome = cli(*arguments, status=2)
    assert "Usage: finback" in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("command", ["show", "chat", "bench", "pull", "serve"])
def test_an_unknown_model_is_answered_with_near_names(cli: Cli, command: str) -> None:
    message, hint = cli(command, "smolm2:135m", status=1).error
    assert "smolm2:135m" in message
    assert "smollm2:135m-q4_1" in str(hint)


def test_an_unknown_model_of_run(cli: Cli) -> None:
    message, hint = cli("run", "--model", "smolm2:135m", "hello", status=1).error
    assert "smolm2:135m" in message
    assert "smollm2:135m-q4_1" in str(hint)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("show", "x", "--format", "q3"), "format"),
        (("chat", "--threads", "0"), "threads"),
        (("chat", "--context", "-5"), "context"),
        (("run", "hi", "--temperature", "-1"), "temperature"),
        (("run", "hi", "--max-tokens", "0"), "max_tokens"),
        (("run", "hi", "--raw", "--system", "x"), "--raw"),
        (("run", "  "), "empty"),
        (("serve", "--host", "0.0.0.0"), "0.0.0.0"),
        (("serve", "--host", "example.com"), "example.com"),
    ],
)
def test_bad_values_are_reported_before_any_work(cli: Cli, home: Path, arguments: tuple[str, ...], what: str) -> None:
    message, _ = cli(*arguments, status=1).error
    assert what in message
    assert not home.exists()


def test_a_bad_environment_is_reported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINBACK_THREDS", "2")
    message, hint = cli("list", status=1).error
    assert message == "FINBACK_THREDS is not a setting"
    assert "FINBACK_THREADS" in str(hint)


def break_version(monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    def fail() -> str:
        raise fault

    monkeypatch.setattr("platform.python_version", fail)


@pytest.mark.parametrize(
    ("fault", "message", "hint"),
    [
        (ChecksumMismatch("bytes differ", hint="try again"), "bytes differ", "try again"),
        (FinbackError("no"), "no", None),
        (PermissionError(13, "Permission denied", "/models/x"), "/models/x: Permission denied", None),
        (MemoryError(), "out of memory", "close other programs"),
        (KeyError("oops"), "a bug in Finback (KeyError: 'oops')", "finback --debug"),
    ],
)
def test_faults_become_two_lines(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, fault: Exception, message: str, hint: str | None
) -> None:
    break_version(monkeypatch, fault)
    found = cli("version", status=1).error
    assert found[0] == message
    assert (found[1] is None) if hint is None else (hint in str(found[1]))


def test_an_interrupt_is_status_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    break_version(monkeypatch, KeyboardInterrupt())
    assert cli("version").status == 130


def test_messages_cannot_steer_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    break_version(monkeypatch, FinbackError("evil \x1b]0;title\x07 [red]markup[/red]"))
    assert cli("version").error[0] == "evil ]0;title [red]markup[/red]"


def test_a_bug_shows_its_traceback_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    environ = {"FINBACK_HOME": str(tmp_path / "home")}
    plain = program("pull", "smollm2", **environ)
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: cannot work on")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in program("--debug", "pull", "smollm2", **environ).stderr


def test_help_imports_nothing_heavy() -> None:
    heavy = (
        "numpy",
        "httpx2",
        "tokenizers",
        "uvicorn",
        "starlette",
        "msgspec",
        "psutil",
        "finback.api",
        "finback._native",
    )
    shown = program("--help", code=f"print('loaded', [name for name in {heavy!r} if name in sys.modules])")
    assert shown.returncode == 0
    assert shown.stdout.splitlines()[-1] == "loaded []"


def test_a_run_imports_only_what_it_needs(tmp_path: Path) -> None:
    """Each of these takes some hundredths of a second that a one-line prompt would wait for."""
    needless = (
        *("httpx2", "uvicorn", "starlette", "msgspec", "psutil", "rich", "asyncio", "minijinja", "pydantic"),
        *("finback.server", "finback.meter", "finback.hub.http", "finback.hub.pull", "finback.cli.bench"),
    )
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama")
    names = f"print('\\nloaded', [name for name in {needless!r} if name in sys.modules])"
    shown = program("run", "-m", str(path), "-n", "2", "Hello", code=names, FINBACK_HOME=str(tmp_path / "home"))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "loaded []"


def test_a_reader_that_hangs_up_is_no_error() -> None:
    script = "import sys; sys.argv = ['finback', 'list', '--catalog']; from finback.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(20) in (0, 1)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_models(home: Path, shell: str) -> None:
    # fish names the word that is being completed, the others its place
    place = "smol" if shell == "fish" else "2"
    environ = {"_FINBACK_COMPLETE": f"{shell}_complete", "COMP_WORDS": "finback show smol", "COMP_CWORD": place}
    shown = program(**environ)
    assert "smollm2" in shown.stdout
    assert shown.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_asks_the_program(cli: Cli, shell: str) -> None:
    script = cli("completion", shell, status=0).out
    assert f"_FINBACK_COMPLETE={shell}_complete" in script
