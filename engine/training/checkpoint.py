"""Checkpoints: the whole state of a training in one file, of tensors and plain values only."""

from __future__ import annotations

import io
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from engine.errors import InputError
from engine.system.files import written

FORMAT = "shoal-training-2"

T = TypeVar("T")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dictionaries, atomically. Raises InputError, StoreFull."""
    content = io.BytesIO()  # of a file that cannot be written torch makes a RuntimeError
    torch.save({"format": FORMAT, "state": state}, content)
    with written(path) as file:
        file.write(content.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote; nothing else is unpickled. Raises InputError where it is no checkpoint."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as problem:
        raise InputError(f"the checkpoint {path} cannot be read: {problem.strerror or problem}") from None
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError("it is of another format")
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as problem:
        raise InputError(f"{path} is no checkpoint of a training, or it is damaged") from problem
    state: dict[str, Any] = found["state"]
    return state


def missing(path: Path) -> InputError:
    """Return the error of a training that is to be resumed without a checkpoint."""
    return InputError(
        f"there is no checkpoint {path}: the training is finished, or was never begun; leave out --resume"
    )


def packed(record: object) -> dict[str, Any]:
    """Return a record of arrays and numbers as a dictionary that `save` takes."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}  # type: ignore[arg-type]
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def unpacked(kind: type[T], found: dict[str, Any]) -> T:
    """Return the record of type `kind` that `packed` was given."""
    return kind(
        **{name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in found.items()}
    )
