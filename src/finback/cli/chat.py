"""``finback chat``: talk to a model in the terminal, or through a pipe with one message per line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finback.cli import options
from finback.errors import FinbackError, InvalidRequest
from finback.hub.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from finback.api import LoadedModel
    from finback.cli.answer import Answer, Printer
    from finback.cli.conversation import Conversation

_PROMPT = ">>> "
_QUOTES = '"""'


@click.command()
@options.model_or_default
@click.option("--system", "-s", metavar="TEXT", help="System prompt.")
@options.thinking
@options.threads
@options.context
@options.format
def chat(
    model: str,
    system: str | None,
    thinking: bool | None,
    threads: int | None,
    context: int | None,
    format: str | None,
) -> None:
    """Talk to a model.

    Type /help for commands. Ctrl-C stops an answer, Ctrl-D ends. Messages can also be piped in, one per line.
    """
    from finback.cli.answer import terminal_printer
    from finback.cli.conversation import Conversation
    from finback.cli.models import load, sampling_of

    with load(model, options.settings_of(threads, context, format)) as loaded:
        conversation = Conversation(system, sampling=sampling_of(loaded.name, loaded), thinking=thinking)
        session = Session(loaded, conversation, terminal_printer())
        if sys.stdin.isatty():
            session.greet()
            session.talk(_typed_line)
        else:
            session.talk(_piped_line)


class Session:
    """A conversation at a terminal: reads lines, runs commands, prints answers. Errors end a turn, not the session."""

    def __init__(self, model: LoadedModel, conversation: Conversation, printer: Printer) -> None:
        self.model = model
        self.conversation = conversation
        self.last: Answer | None = None
        self._printer = printer
        self._over = False
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "help": (self._help, "this list"),
            "exit": (self._exit, "end (also Ctrl-D)"),
            "clear": (self._clear, "forget the conversation; the system prompt stays"),
            "system": (self._system, "TEXT: set the system prompt; alone: show it; 'none' removes it"),
            "set": (self._set, "NAME VALUE: change a setting, as /set temperature 0.7; alone: show them"),
            "regenerate": (self._regenerate, "answer the last question again"),
            "stats": (self._stats, "figures of the last answer, and the context used"),
            "save": (self._save, "FILE: write the conversation to a new file"),
            "load": (self._load, "FILE: go on with a saved conversation"),
        }

    def greet(self) -> None:
        """Say what one is talking to."""
        from finback.cli.output import count_text, note

        config = self.model.config
        facts = f"{count_text(config.parameters.total)} parameters, context {self.model.context} tokens"
        note(f"{self.model.name}: {facts}, {self.model.settings.threads} threads")
        if self.model.name == DEFAULT_MODEL:
            note("It is very small: quick, often wrong, good for a try. Others: finback list --catalog")
        note("Type a message. /help lists the commands, Ctrl-D ends.")

    def talk(self, read: Callable[[], str | None]) -> None:
        """Take turns until the input or the user ends it."""
        while not self._over:
            line = read()
            if line is None:
                return
            try:
                self._turn(line.strip())
            except FinbackError as fault:
                _complain(fault)
            except OSError as fault:
                _complain(InvalidRequest(f"{fault.filename}: {fault.strerror}"))

    def _turn(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            self._command(line)
        elif line:
            self._answer(line[1:] if line.startswith("//") else line)

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "bye"):
            name = "exit"
        if name not in self._commands:
            raise InvalidRequest(
                f"there is no command /{name}", hint="/help lists them; // starts a message with a slash"
            )
        self._commands[name][0](rest.strip())

    def _answer(self, question: str) -> None:
        from finback.cli.answer import chat_answer

        talk = self.conversation
        talk.ask(question)
        try:
            answer = chat_answer(
                self.model, talk.prompt(), self._printer, thinking=talk.thinking, sampling=talk.sampling
            )
        except BaseException:
            talk.take_back()
            raise
        talk.hear(answer.text, answer.reasoning)
        self.last = answer
        if answer.stopped or answer.finish_reason == "length":
            from finback.cli.output import note

            note("(stopped)" if answer.stopped else "(cut off: the context or max_tokens is used up)")

    def _help(self, rest: str) -> None:
        from finback.cli.output import note

        width = max(map(len, self._commands))
        note("\n".join(f"/{name:<{width}}  {text}" for name, (_, text) in self._commands.items()))
        note(f"{_QUOTES:<{width + 1}}  starts and ends a message of several lines")
        note("Ctrl-C stops an answer; Ctrl-D ends the program")

    def _exit(self, rest: str) -> None:
        self._over = True

    def _clear(self, rest: str) -> None:
        self.conversation.messages.clear()
        self.last = None
        _say("forgotten")

    def _system(self, rest: str) -> None:
        if rest:
            self.conversation.system = None if rest == "none" else rest
        _say(self.conversation.system or "no system prompt")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name and not value.strip():
            raise InvalidRequest(f"/set {name} needs a value", hint=f"/set {name} default takes it back")
        if name:
            self.conversation.set(name, value.strip())
        listed = ", ".join(f"{key} {value}" for key, value in self.conversation.settings().items())
        _say(listed or "as the model's makers publish them")

    def _regenerate(self, rest: str) -> None:
        question = self.conversation.take_back()
        if question is None:
            raise InvalidRequest("there is no question to answer again")
        self._answer(question)

    def _stats(self, rest: str) -> None:
        if self.last is None:
            raise InvalidRequest("there is no answer yet")
        _say(f"{self.last.describe()}\ncontext: {self._context_used()} of {self.model.context} tokens used")

    def _context_used(self) -> int:
        """Tokens of the conversation as the next answer would be asked for."""
        chat_format = self.model.chat_format
        if chat_format is None or not self.conversation.messages:
            return 0
        pieces = chat_format.render(self.conversation.prompt(), thinking=self.conversation.thinking)
        return len(self.model.tokenizer.encode_pieces(pieces))

    def _save(self, rest: str) -> None:
        path = _file(rest, "save")
        self.conversation.save(path)
        _say(f"saved to {path}")

    def _load(self, rest: str) -> None:
        from finback.cli.conversation import Conversation

        path = _file(rest, "load")
        self.conversation = Conversation.load(path)
        _say(f"{len(self.conversation.messages)} messages from {path}")


def _file(text: str, command: str) -> Path:
    if not text:
        raise InvalidRequest(f"/{command} needs a file name")
    return Path(text).expanduser()


def _say(text: str) -> None:
    from finback.cli.output import note

    note(text)


def _complain(fault: FinbackError) -> None:
    from finback.cli.output import complain

    complain(fault.message, fault.hint)


def _typed_line() -> str | None:
    """A message from the keyboard, with line editing and history; None when the user is done."""
    with_history()
    while True:
        try:
            line = input(_PROMPT)
            return _several_lines(line) if line.startswith(_QUOTES) else line
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            _say("Ctrl-D or /exit ends the program")


def _several_lines(first: str) -> str:
    """A message between triple quotes."""
    text = first[len(_QUOTES) :]
    while not text.endswith(_QUOTES):
        text += "\n" + input("... ")
    return text[: -len(_QUOTES)]


def with_history() -> None:
    """Importing readline is what gives ``input`` its editing; some Pythons lack it."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


def _piped_line() -> str | None:
    """A message per line; None at the end of the input."""
    line = sys.stdin.readline()
    return line if line else None
