"""Image encoders: trained on labelled classes, applied to any, one safetensors file each.

An encoder is a classifier without its last layer; its embeddings transfer to classes it was not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.learning.losses import Margins
from engine.learning.networks import KINDS, make_encoder
from engine.learning.pictures import LARGEST, Pictures
from engine.learning.training import Plan, fit
from engine.model import files
from engine.system.files import written
from engine.types import Float32

import safetensors  # isort: skip
import safetensors.torch  # isort: skip
import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

FORMAT = "shoal-encoder-1"
BATCH = 256  # pictures that are encoded at once
MOST_COMPONENTS = 1_024


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network with its card; `about` is free."""

    net: nn.Module
    kind: str
    size: int  # pixels a side
    dim: int
    about: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """Read a file that `save` wrote. Raises InputError where it is no such file."""
        try:
            raw = path.read_bytes()
            tensors = safetensors.torch.load(raw)
            card = files.tagged_card(raw, FORMAT)
            kind, size, dim = card["kind"], int(card["size"]), int(card["dim"])
            if kind not in KINDS or not 8 <= size <= LARGEST or not 1 <= dim <= MOST_COMPONENTS:
                raise ValueError(f"there is no {kind} encoder of {size} pixels and {dim} components")
            if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
                raise ValueError("its weights are not finite numbers")
            net = make_encoder(kind, size, dim)
            net.load_state_dict(tensors)
            return cls(net.eval(), kind, size, dim, card["about"])
        except OSError as problem:
            raise InputError(f"the encoder {path} cannot be read: {problem.strerror or problem}.") from None
        except KeyError:
            raise InputError(f"{path} is no encoder of Shoal: it has no card of an encoder.") from None
        except (ValueError, TypeError, RuntimeError, safetensors.SafetensorError) as problem:
            reason = str(problem).split("\n")[0]
            raise InputError(f"{path} is no encoder of Shoal, or it is damaged: {reason}") from None

    def save(self, path: Path) -> None:
        """Write weights and card. Raises InputError where the file cannot be written."""
        card = {
            "format": FORMAT,
            "kind": self.kind,
            "size": self.size,
            "dim": self.dim,
            "about": dict(self.about),
        }
        tensors = {name: values.contiguous() for name, values in self.net.state_dict().items()}
        with written(path) as file:
            file.write(safetensors.torch.save(tensors, {"shoal": json.dumps(card)}))

    def apply(self, grey: Float32, progress: Callable[[float], None] = lambda share: None) -> Float32:
        """Embed pictures (n, size, size) of grey levels 0 to 1 as unit vectors (n, dim).

        Raises InputError for pictures of another size.
        """
        if grey.shape[1:] != (self.size, self.size):
            raise InputError(
                f"the encoder takes pictures of {self.size} pixels a side, not {grey.shape[1:]}."
            )
        out = np.empty((len(grey), self.dim), np.float32)
        with torch.inference_mode():
            for first in range(0, len(grey), BATCH):
                rows = torch.from_numpy(grey[first : first + BATCH])[:, None]
                out[first : first + BATCH] = nn.functional.normalize(self.net(rows), dim=1).numpy()
                progress(min(first + BATCH, len(grey)) / len(grey))
        return out


def train_encoder(
    pictures: Pictures,
    kind: str,
    dim: int,
    plan: Plan,
    progress: Callable[[float, float], None] = lambda share, loss: None,
) -> tuple[Encoder, Margins | None]:
    """Train an encoder on labelled pictures; return it and the margins of TCM, None: without TCM.

    Pictures are augmented by small rotations, shifts and scalings. Raises InputError for an unknown kind, an
    impossible dimension, pictures without two classes, or a loss that cannot be used.
    """
    if kind not in KINDS:
        raise InputError(f"an encoder is {' or '.join(KINDS)}, not {kind}.")
    if not 2 <= dim <= MOST_COMPONENTS:
        raise InputError(f"an encoder has 2 to {MOST_COMPONENTS} components, not {dim}.")
    classes = pictures.classes
    grey = torch.from_numpy(pictures.grey)[:, None]
    torch.manual_seed(plan.seed)
    net = make_encoder(kind, grey.shape[-1], dim)
    margins = fit(net, lambda items: varied(grey[items]), classes, plan, progress)
    about = {
        "loss": plan.loss,
        "tcm": plan.tcm,
        "margins": margins and [margins.positive, margins.negative],
        "steps": plan.steps,
        "seed": plan.seed,
        "classes": int(classes.max()) + 1,
        "pictures": len(classes),
    }
    return Encoder(net, kind, grey.shape[-1], dim, about), margins


def varied(pictures: Tensor) -> Tensor:
    """Rotate pictures (b, 1, s, s) by up to 14 degrees, scale by 15% and shift by 7%, at random."""
    count = len(pictures)
    turn, scale = 0.5 * (torch.rand(count) - 0.5), 1.0 + 0.3 * (torch.rand(count) - 0.5)
    shift = 0.3 * (torch.rand(count, 2) - 0.5)
    first = torch.stack([scale * turn.cos(), -scale * turn.sin(), shift[:, 0]], dim=1)
    second = torch.stack([scale * turn.sin(), scale * turn.cos(), shift[:, 1]], dim=1)
    maps = torch.stack([first, second], dim=1)  # (b, 2, 3)
    places = nn.functional.affine_grid(maps, list(pictures.shape), align_corners=False)
    return nn.functional.grid_sample(pictures, places, align_corners=False)
