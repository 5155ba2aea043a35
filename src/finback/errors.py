"""The exception tree: every failure that a user can cause or meet has a type here.

A message says what is wrong and why; ``hint`` says what to do about it, and the faces print it on its own line.

    FinbackError
    ├── ConfigError               a setting, flag or environment variable has a value that cannot be used
    ├── KernelArgumentError       arguments of a kernel do not fit together (operation, argument, expected, actual)
    ├── ModelError                something is wrong with a model's files
    │   ├── MalformedFile         the bytes contradict themselves: truncated, lying offsets, impossible sizes
    │   ├── UnsupportedModel      a sound file of an architecture, format or option that Finback does not run
    │   ├── MissingTensor         the architecture needs a tensor that the files do not have
    │   ├── ShapeMismatch         a tensor's shape or type contradicts the model's configuration
    │   ├── TokenizerError        the tokenizer's data cannot be used
    │   └── ModelTooLarge         the model or its context does not fit in this machine's memory or disk
    ├── HubError                  names and downloads
    │   ├── UnknownModel          no such name in the catalog, on disk, or at the source
    │   ├── DownloadError         the transfer failed and could not be resumed
    │   └── ChecksumMismatch      the bytes that arrived are not the published ones
    ├── InvalidRequest            a request cannot be run as asked; ``parameter`` names the field
    │   ├── PromptTooLong         prompt plus answer exceed the context
    │   └── TemplateError         the chat template failed, or exceeded its bounds
    ├── AccessError               who asks may not ask this, or not now
    │   ├── Unauthorized          no key, an unknown one, or one that is no longer valid
    │   ├── Forbidden             a valid key that does not open this door
    │   └── LimitReached          a key's limit; ``retry_after_s`` says when it is worth trying again
    │       └── BudgetSpent       its money, which does not come back by waiting
    ├── LedgerError               what was used cannot be booked
    ├── Unavailable               the server takes no requests now; ``retry_after_s`` says when to ask again
    └── EngineError               the engine could not go on with a request or at all
        └── QueueFull             too many requests wait already; ``retry_after_s`` is a good time to ask again
"""

from __future__ import annotations


class FinbackError(Exception):
    """Base of all of Finback's errors: ``str()`` is the message, ``hint`` the way out (or None)."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(FinbackError):
    """A setting, flag or environment variable has a value that cannot be used."""


class KernelArgumentError(FinbackError, ValueError):
    """Arguments of a kernel do not fit together."""


class ModelError(FinbackError):
    """Something is wrong with a model's files."""


class MalformedFile(ModelError):
    """The bytes contradict themselves."""


class UnsupportedModel(ModelError):
    """A sound file of an architecture, format or option that Finback does not run."""


class MissingTensor(ModelError):
    """The architecture needs a tensor that the files do not have."""


class ShapeMismatch(ModelError):
    """A tensor's shape or type contradicts the model's configuration."""


class TokenizerError(ModelError):
    """The tokenizer's data cannot be used."""


class ModelTooLarge(ModelError):
    """The model or its context does not fit in this machine's memory or disk."""


class HubError(FinbackError):
    """A name or a download failed."""


class UnknownModel(HubError):
    """No such name in the catalog, on disk, or at the source."""


class DownloadError(HubError):
    """The transfer failed and could not be resumed."""


class ChecksumMismatch(HubError):
    """The bytes that arrived are not the published ones."""


class InvalidRequest(FinbackError):
    """A request cannot be run as asked; ``parameter`` names the offending field where there is one."""

    def __init__(self, message: str, *, parameter: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.parameter = parameter


class PromptTooLong(InvalidRequest):
    """Prompt plus answer exceed the context."""


class TemplateError(InvalidRequest):
    """The chat template failed, or exceeded its bounds."""


class AccessError(FinbackError):
    """Who asks may not ask this, or not now."""


class Unauthorized(AccessError):
    """No key, an unknown one, or one that is no longer valid."""


class Forbidden(AccessError):
    """A valid key that does not open this door."""


class LimitReached(AccessError):
    """A key's limit is used up. ``retry_after_s``: when it is worth trying again; None: not by waiting."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class BudgetSpent(LimitReached):
    """A key's money is spent."""


class LedgerError(FinbackError):
    """What was used cannot be booked."""


class Unavailable(FinbackError):
    """The server takes no requests now. ``retry_after_s``: when to ask again."""

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class EngineError(FinbackError):
    """The engine could not go on with a request, or at all."""


class QueueFull(EngineError):
    """Too many requests wait already. ``retry_after_s``: when those that wait will about have been served."""

    def __init__(self, message: str, *, retry_after_s: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
