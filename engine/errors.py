"""Errors, named by what the caller can do about them. The message is one sentence for people.

Each class has the exit code with which the command line ends; engine/guide/operations.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ShoalError(Exception):
    """Base class of all expected errors."""

    exit_code = 1


class ConfigError(ShoalError):
    """Fix the settings: a file, an environment variable or a flag."""

    exit_code = 2


class InputError(ShoalError):
    """Fix the input: a record, a file, a model or an argument."""

    exit_code = 3


class NotFound(InputError, KeyError):
    """Nothing has this key or id: ask for another."""

    __str__ = Exception.__str__  # KeyError's shows the message in quotes


class StoreError(ShoalError):
    """The store cannot be used as it is: call the operator."""

    exit_code = 4


class NoStore(StoreError):
    """There is no store at this path: create one with `shoal ingest`, or name another."""

    exit_code = 5


class StoreLocked(StoreError):
    """Another process writes this store: retry when it has ended."""

    exit_code = 6


class StoreFull(StoreError):
    """Disk, memory or a bound of the store is full, or the disk cannot be written: make room, then retry."""

    exit_code = 7


class CorruptStore(StoreError):
    """What is on disk is not what was written: restore or rebuild."""

    exit_code = 8


class ConfigMismatch(StoreError):
    """The store was made with another format, dimension, model or configuration: `shoal rebuild`."""

    exit_code = 9


class WriterAway(ShoalError):
    """No process writes this store, or it ended before it answered: start `shoal serve`, then retry."""

    exit_code = 10


class WriterBusy(ShoalError):
    """The writer is too busy to answer in time: retry."""

    exit_code = 11


class BrokerError(ShoalError):
    """Kafka refuses, or a topic is not the one that was read or published to: call the operator."""

    exit_code = 12


class Undecided(ShoalError):
    """The judgements do not determine the granularity: more of them may. Nothing was changed."""

    exit_code = 13


class Forked(ShoalError):
    """A fork cannot use what its parent has opened or begun: start the process with "spawn"."""


class Unusable(Exception):
    """One record cannot be used; the others are processed. The message is a clause without a full stop."""


def shown(value: Any) -> str:
    """Return `repr(value)`, truncated to 60 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def counted(number: int, one: str, many: str = "") -> str:
    """Return "1 item", "1,200 items". `many`: the plural where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def dump(error: ShoalError) -> dict[str, str]:
    """Return an error as JSON for another process; see `load`."""
    return {"error": type(error).__name__, "sentence": str(error)}


def load(told: Mapping[str, Any]) -> ShoalError:
    """Return the error that `dump` described: a plain ShoalError where its class is unknown here."""
    kind = globals().get(str(told["error"]))
    if not (isinstance(kind, type) and issubclass(kind, ShoalError)):
        kind = ShoalError
    return kind(str(told["sentence"]))
