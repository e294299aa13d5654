"""A model of any kind, and reading one: its card says which it is."""

from __future__ import annotations

import json
from pathlib import Path

from engine.errors import InputError
from engine.model.lander import LanderModel, wrong_dim
from engine.model.linkage import PRETRAINED, LinkageModel

Trained = LinkageModel | LanderModel


def load(path: Path | None = None) -> Trained:
    """Read a model with its card; by default the one that ships with Shoal.

    Raises InputError where the files are missing, broken, or not of one model.
    """
    path = path or PRETRAINED
    try:
        card = json.loads(path.with_suffix(".json").read_text())
    except OSError as error:
        raise InputError(f"the model {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} and its .json are not a Shoal model: {error}") from error
    if not isinstance(card, dict):
        raise InputError(f"{path} and its .json are not a Shoal model: the card is not an object")
    return LanderModel.load(path) if "variant" in card else LinkageModel.load(path)


def check_dim(model: Trained, dim: int) -> None:
    """Raise InputError where a model does not take embeddings of `dim` components."""
    if model.dim is not None and model.dim != dim:
        raise InputError(f"the model {wrong_dim(model.dim, dim)}")
