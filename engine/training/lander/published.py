"""Imports weights that the authors' public code trained, as a `lander` of Shoal.

That code (dmlc/dgl, examples/pytorch/hilander) saves a state dict with torch.save. Its names are those of
`engine.model.lander.shapes`; the guide on models has a table of them. Nothing but tensors is unpickled.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.config import MAX_LEVELS
from engine.errors import InputError
from engine.model.lander import LanderCard, LanderModel

_WRAPPED = "module."  # before each name that DataParallel saves
_GAT, _MEAN = "conv.0.gcn_layer.fc.weight", "conv.0.gcn_layer.mlp.weight"


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that torch.save wrote. Raises InputError where it holds anything else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the weights {path} cannot be read: {error.strerror or error}") from error
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (
        OSError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:
        raise InputError(
            f"{path} is damaged, or not of tensors alone, as torch.save(model.state_dict(), ...) writes them"
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]  # of a checkpoint
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise InputError(f"{path} holds no state dict: save model.state_dict(), not the model")
    is_wrapped = all(str(name).startswith(_WRAPPED) for name in found)
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            raise InputError(f"{path}: {name} holds {tensor.dtype}, where weights are fractions")
    return {str(name)[len(_WRAPPED) if is_wrapped else 0 :]: each.to_dense() for name, each in found.items()}


def model_of(weights: Mapping[str, Tensor], average: bool, k: int, tau: float, levels: int) -> LanderModel:
    """Return weights under the authors' names as a model.

    `average`: they were trained with average and identity features (`--use_cluster_feat`); their
    shapes do not show it. Raises InputError where they are no such weights.
    """
    if levels > MAX_LEVELS:
        raise InputError(f"a model has at most {MAX_LEVELS} levels, not {levels:,}")
    deep = {name.split(".")[1] for name in weights if name.startswith("conv.")}
    if len(deep) > 1:
        raise InputError(
            f"the weights have {len(deep)} graph convolutions; Shoal runs one, as in the paper's settings "
            "(--num_conv 1): more would make each change reach further"
        )
    if _GAT not in weights and _MEAN not in weights:
        raise InputError(f"the weights are no lander: there is neither {_GAT} nor {_MEAN}")
    variant = "gat" if _GAT in weights else "mean"
    name = _GAT if variant == "gat" else _MEAN
    layer = weights[name]
    if layer.dim() != 2:
        raise InputError(f"{name} is a matrix, but here has the shape {tuple(layer.shape)}")
    heads = len(weights["conv.0.bias"]) if variant == "gat" and "conv.0.bias" in weights else 1
    rows, columns = layer.shape
    features = columns if variant == "gat" else columns // 2
    if average and features % 2:
        raise InputError(
            f"the weights read {features} features, which are no two vectors: were they trained without "
            "average features?"
        )
    card = LanderCard(
        dim=features // 2 if average else features,
        variant=variant,
        hidden=rows // max(heads, 1),
        heads=heads,
        average=average,
        k=k,
        tau=tau,
        max_levels=levels,
        about={"imported": "weights of the authors' public code"},
    )
    return LanderModel(dict(weights), card)
