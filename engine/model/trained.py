"""Reads a model of either kind; its card says which it is."""

from __future__ import annotations

from pathlib import Path

from engine.errors import InputError
from engine.model import files
from engine.model.lander import LanderModel, wrong_dim
from engine.model.linkage import PRETRAINED, LinkageModel

Trained = LinkageModel | LanderModel
SHIPPED = Path("universal")  # the name of the model that ships with Shoal


def load(path: Path | None = None) -> Trained:
    """Read a model with its card; by default, and by the name `universal`, the one that ships with Shoal.

    Raises InputError where the files are missing, broken, or not of one model.
    """
    if path is None or (path == SHIPPED and not path.exists()):
        path = PRETRAINED
    card, weights = files.read(path)
    return (LanderModel if "variant" in card else LinkageModel).parse(path, card, weights)


def check_dim(model: Trained, dim: int) -> None:
    """Raise InputError where a model does not take embeddings of `dim` components."""
    if model.dim is not None and model.dim != dim:
        raise InputError(f"the model {wrong_dim(model.dim, dim)}")
