"""Adapters: exact whatever the order and the rows beside, near the real map, and files that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError
from engine.model.adapter import Adapter
from engine.vectors import as_float, quantize


def weights(seed: int, kind: str, d: int = 24, out: int = 10, hidden: int = 40) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = {"direct": rng.normal(size=(d, out)), "bias": 0.2 * rng.normal(size=out)}
    if kind == "mlp":
        found["inner"], found["inner_bias"] = rng.normal(size=(d, hidden)), 0.1 * rng.normal(size=hidden)
        found["outer"] = rng.normal(size=(hidden, out)) / 4
    return found


def vectors(seed: int, n: int = 700, d: int = 24) -> Any:
    return quantize(np.random.default_rng(seed).normal(size=(n, d)))[0]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_result_is_the_map_rounded(kind: str) -> None:
    w, grid = weights(1, kind), vectors(1)
    x = as_float(grid).astype(np.float64)
    y = x @ w["direct"] + w["bias"]
    if kind == "mlp":
        y += np.maximum(x @ w["inner"] + w["inner_bias"], 0) @ w["outer"]
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    adapter = Adapter.of(w, {})
    assert adapter.kind == kind
    np.testing.assert_allclose(as_float(adapter.apply(grid)), y, atol=2e-3)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("seed", range(4))
def test_the_result_of_a_row_depends_on_that_row_alone(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    adapter, grid = Adapter.of(weights(seed, kind), {}), vectors(seed)
    whole = adapter.apply(grid)
    order = rng.permutation(len(grid))
    np.testing.assert_array_equal(adapter.apply(grid[order]), whole[order])
    for row in rng.integers(0, len(grid), 5):
        np.testing.assert_array_equal(adapter.apply(grid[row : row + 1]), whole[row : row + 1])
    # The components in another order: sums of integers do not care. A float32 product would.
    swapped = rng.permutation(grid.shape[1])
    moved = {
        name: values[swapped] if name in ("direct", "inner") else values
        for name, values in adapter.weights.items()
    }
    np.testing.assert_array_equal(Adapter(moved, adapter.shift, {}).apply(grid[:, swapped]), whole)


def test_a_file_gives_the_same_adapter(tmp_path: Path) -> None:
    made = Adapter.of({name: np.asfortranarray(w) for name, w in weights(2, "mlp").items()}, {"loss": "x"})
    made.save(tmp_path / "a.safetensors")
    read = Adapter.load(tmp_path / "a.safetensors")
    assert read.sha256 == made.sha256
    assert read.about == {"loss": "x"}
    np.testing.assert_array_equal(read.apply(vectors(3)), made.apply(vectors(3)))
    assert Adapter.of(weights(3, "mlp"), {}).sha256 != made.sha256


def test_a_vector_that_is_mapped_to_zero_has_a_place() -> None:
    adapter = Adapter.of({"direct": np.array([[1.0, 0.0], [0.0, 0.0]]), "bias": np.zeros(2)}, {})
    np.testing.assert_array_equal(adapter.apply(quantize([[0.0, 1.0]])[0]), [[2**14, 0]])


def test_another_dimension_is_refused() -> None:
    with pytest.raises(InputError, match="takes embeddings of 24 components, these have 8"):
        Adapter.of(weights(1, "linear"), {}).apply(vectors(1, 5, 8))


def test_weights_that_cannot_be_are_refused() -> None:
    good = weights(1, "mlp")
    bad: list[dict[str, Any]] = [
        {"direct": np.full((3, 2), np.nan), "bias": np.zeros(2)},
        {"direct": np.zeros((3, 2)), "bias": np.zeros(2)},
        {"direct": np.ones((3, 2)), "bias": np.zeros(3)},
        {"direct": np.ones((3, 2))},
        {**good, "outer": np.ones((7, 10))},
        {name: values for name, values in good.items() if name != "outer"},
    ]
    for each in bad:
        with pytest.raises(InputError):
            Adapter.of(each, {})


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "other", "pickle"])
def test_a_file_that_is_no_adapter_is_refused(kind: str, tmp_path: Path, model: Path) -> None:
    path = tmp_path / "a.safetensors"
    Adapter.of(weights(2, "linear"), {}).save(path)
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "text":
        path.write_text("no tensors")
    elif kind == "other":
        path.write_bytes(model.read_bytes())
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(InputError):
        Adapter.load(path)
