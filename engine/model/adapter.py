"""Applies an adapter, a learned map of embeddings to embeddings, bit for bit and without torch.

With x a vector on the grid of `engine.vectors` and all weights integers in steps of 2^-shift, the output

    linear   y = x V + b
    mlp      y = x V + b + round(relu(x W + a)) U        U, V: (., out), W: (d, hidden)

is a sum of integers. The products run in float64, in blocks of one size, and every sum stays below 2^53. So
the result does not depend on the order, the number of rows or the machine. It is scaled to unit length and
rounded to the grid row by row, like incoming embeddings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from engine.config import MAX_DIM
from engine.errors import InputError
from engine.model import files
from engine.system.files import written
from engine.types import Float64, Int16
from engine.vectors import SCALE, quantize

FORMAT = "shoal-adapter-1"
BLOCK = 256  # rows of a product; the last block is padded
LARGEST = 2.0**53  # integers below it are exact in float64
_SHAPES = {"direct": 2, "bias": 1, "inner": 2, "inner_bias": 1, "outer": 2}  # V, b, W, a, U


@dataclass(frozen=True, slots=True)
class Adapter:
    """Weights as integers in float64; `about` is free."""

    weights: Mapping[str, Float64]
    shift: int
    about: Mapping[str, Any]
    sha256: str = field(init=False)  # digest of everything that the result depends on

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"{FORMAT} {self.shift} {SCALE}".encode())
        for name, values in sorted(self.weights.items()):
            digest.update(f"{name} {values.shape}".encode() + values.astype("<i4").tobytes())
        object.__setattr__(self, "sha256", digest.hexdigest())

    @property
    def dim_in(self) -> int:
        """Components of its input."""
        return int(self.weights["direct"].shape[0])

    @property
    def dim_out(self) -> int:
        """Components of its output."""
        return int(self.weights["direct"].shape[1])

    @property
    def kind(self) -> str:
        """`linear` or `mlp`."""
        return "mlp" if "inner" in self.weights else "linear"

    @classmethod
    def of(cls, weights: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> Adapter:
        """Quantise real weights to 15 bits, all in the same steps.

        Raises InputError where they are not those of an adapter, or not finite.
        """
        largest = max((float(np.abs(each).max(initial=0.0)) for each in weights.values()), default=0.0)
        if not 0.0 < largest < np.inf:
            raise InputError("the adapter's weights are not finite numbers, or all zero.")
        shift = int(np.floor(15 - np.log2(largest))) - 1
        steps = {
            name: np.ascontiguousarray(np.rint(np.asarray(each, np.float64) * 2.0**shift))
            for name, each in weights.items()
        }
        return _checked(cls(steps, shift, about))

    @classmethod
    def load(cls, path: Path) -> Adapter:
        """Read a file that `save` wrote. Raises InputError where it is no such file."""
        try:
            raw = path.read_bytes()
            tensors = safetensors.numpy.load(raw)
            card = files.tagged_card(raw, FORMAT)
            weights = {name: values.astype(np.float64) for name, values in tensors.items()}
            return _checked(cls(weights, int(card["shift"]), card["about"]))
        except OSError as problem:
            raise InputError(f"the adapter {path} cannot be read: {problem.strerror or problem}.") from None
        except KeyError:
            words = "it has no card of an adapter; a model is named under path, not under adapter"
            raise InputError(f"{path} is no adapter of Shoal: {words}.") from None
        except (ValueError, TypeError, safetensors.SafetensorError, InputError) as problem:
            raise InputError(f"{path} is no adapter of Shoal, or it is damaged: {problem}") from None

    def save(self, path: Path) -> None:
        """Write weights and card to one safetensors file. Raises InputError where that fails."""
        card = json.dumps({"format": FORMAT, "shift": self.shift, "about": dict(self.about)})
        # safetensors writes an array's memory as it is: it has to be C-contiguous.
        tensors = {name: np.ascontiguousarray(values, np.int32) for name, values in self.weights.items()}
        with written(path) as file:
            file.write(safetensors.numpy.save(tensors, {"shoal": card}))

    def apply(self, grid: Int16) -> Int16:
        """Map grid vectors (n, dim_in) to grid vectors (n, dim_out).

        A vector that is mapped to zero becomes the first unit vector. Raises InputError for vectors of
        another dimension.
        """
        if grid.shape[1] != self.dim_in:
            raise InputError(
                f"the adapter takes embeddings of {self.dim_in} components, these have {grid.shape[1]}."
            )
        out = np.zeros((len(grid), self.dim_out), np.int16)
        block = np.zeros((BLOCK, self.dim_in))
        for first in range(0, len(grid), BLOCK):
            rows = grid[first : first + BLOCK]
            block[: len(rows)] = rows
            mapped = self._map(block)[: len(rows)]
            mapped[~mapped.any(axis=1), 0] = 1.0
            out[first : first + len(rows)] = quantize(mapped)[0]
        return out

    def _map(self, x: Float64) -> Float64:
        w = self.weights
        y: Float64 = x @ w["direct"] + w["bias"] * SCALE
        if "inner" in w:
            hidden = np.floor(
                np.maximum(x @ w["inner"] + w["inner_bias"] * SCALE, 0.0) * 2.0**-self.shift + 0.5
            )
            y += hidden @ w["outer"]
        return y


def _checked(adapter: Adapter) -> Adapter:
    """Raise InputError where shapes do not fit or a sum could reach 2^53."""
    w = adapter.weights
    names = set(_SHAPES) if "inner" in w else {"direct", "bias"}
    if set(w) != names or any(w[name].ndim != _SHAPES[name] for name in names):
        raise InputError("the arrays in it are not those of an adapter.")
    d, out = w["direct"].shape
    if not 0 < d <= MAX_DIM or not 0 < out <= MAX_DIM or w["bias"].shape != (out,):
        raise InputError(f"it maps {d} components to {out}; both have to be between 1 and {MAX_DIM}.")
    if not all(np.isfinite(values).all() and (np.rint(values) == values).all() for values in w.values()):
        raise InputError("its weights are not integers.")
    reach = (np.abs(w["direct"]).sum(axis=0) + np.abs(w["bias"])) * 2 * SCALE
    if "inner" in w:
        width = w["inner"].shape[1]
        if w["inner"].shape[0] != d or w["inner_bias"].shape != (width,) or w["outer"].shape != (width, out):
            raise InputError("the shapes of its arrays do not fit together.")
        inner = (np.abs(w["inner"]).sum(axis=0) + np.abs(w["inner_bias"])) * 2 * SCALE
        hidden = inner * 2.0**-adapter.shift + 1
        reach = np.maximum(reach + hidden @ np.abs(w["outer"]), inner.max())
    if reach.max() >= LARGEST or not -8 <= adapter.shift <= 40:
        raise InputError("its weights are too large for exact arithmetic.")
    return adapter
