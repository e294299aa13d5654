"""The grid and exact arithmetic on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import vectors
from engine.vectors import SCALE, moderate, quantize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_a_vector_is_scaled_to_unit_length_and_rounded() -> None:
    grid, bad = quantize([[3.0, 4.0], [-1.0, 0.0], [1.0, 1.0]])
    assert not bad
    assert grid.dtype == np.int16
    assert grid.tolist() == [[9830, 13107], [-16384, 0], [11585, 11585]]  # .6 and .8, -1, 1/sqrt 2


@pytest.mark.parametrize("dim", [1, 2, 384, 2048])
def test_the_grid_is_at_most_half_a_step_away(rng: np.random.Generator, dim: int) -> None:
    rows = rng.normal(size=(50, dim))
    grid, bad = quantize(rows)
    assert not bad
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(grid - unit * SCALE).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([np.nan, 1.0], "the embedding has a NaN or an infinity"),
        ([1.0, np.inf], "the embedding has a NaN or an infinity"),
        ([-np.inf, np.nan], "the embedding has a NaN or an infinity"),
        ([0.0, -0.0], "the embedding is zero"),
    ],
)
def test_bad_rows_are_named_and_the_others_kept(row: list[float], reason: str) -> None:
    grid, bad = quantize([[0.0, 2.0], row, [1.0, 0.0], row])
    assert bad == {1: reason, 3: reason}
    assert grid.tolist() == [[0, SCALE], [0, 0], [SCALE, 0], [0, 0]]


@pytest.mark.parametrize("length", [5e-324, 1e-308, 1e-160, 1e-30, 1.0, 1e30, 1e160, 1.7e308])
def test_any_finite_length_is_fine(length: float) -> None:
    """No square overflows or vanishes on the way."""
    grid, bad = quantize([[length, -length], [length, 0.0]])
    assert not bad
    assert grid.tolist() == [[11585, -11585], [SCALE, 0]]


@pytest.mark.filterwarnings("error")
def test_vectors_of_extreme_length_are_scaled_and_others_stay() -> None:
    usual = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
    assert moderate(usual) is usual
    for length in (5e-324, 1e-30, 1e30, 1.7e308):
        found = moderate(np.array([[length, -length], [3.0, 4.0], [0.0, 0.0]]))
        assert np.allclose(found, [[0.5**0.5, -(0.5**0.5)], [3.0, 4.0], [0.0, 0.0]])
    assert np.allclose(moderate(np.array([[3 << 30, 4 << 30], [3, 4]])), [[0.6, 0.8], [3.0, 4.0]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.longdouble])
def test_other_number_types_give_what_their_values_in_float64_give(dtype: Any) -> None:
    rows = np.array([[1, 2, -3], [0, 7, 1]], dtype) / (1 if dtype == np.int8 else dtype(3))
    assert np.array_equal(quantize(rows)[0], quantize(rows.astype(np.float64))[0])


def test_a_row_does_not_depend_on_its_companions(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(300, 40)).astype(np.float32)
    order = rng.permutation(len(rows))
    grid, _ = quantize(rows)
    assert np.array_equal(quantize(rows[order])[0], grid[order])
    assert np.array_equal(quantize(np.asfortranarray(rows))[0], grid)
    assert np.array_equal(quantize(np.repeat(rows, 2, axis=0)[::2])[0], grid)
    for row in range(5):
        assert np.array_equal(quantize(rows[row : row + 1])[0], grid[row : row + 1])


@pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 2, 2), ()])
def test_a_matrix_is_asked_for(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the shape \(n, d\)"):
        quantize(np.ones(shape))


def test_no_rows_are_no_rows() -> None:
    grid, bad = quantize(np.empty((0, 5)))
    assert grid.shape == (0, 5)
    assert not bad


@pytest.mark.parametrize("dim", [1, 3, 1000, 16_384])
def test_dots_are_exact(rng: np.random.Generator, dim: int) -> None:
    """Also for opposite vectors, in the most dimensions there can be."""
    grid, _ = quantize(np.concatenate([rng.normal(size=(20, dim)), np.ones((1, dim)), -np.ones((1, dim))]))
    wide = grid.astype(object)
    sources, targets = np.divmod(np.arange(len(grid) ** 2, dtype=np.int32), len(grid))
    found = vectors.dots(grid, sources.astype(np.int32), targets.astype(np.int32))
    assert found.dtype == np.int32
    assert found.tolist() == (wide @ wide.T).ravel().tolist()


def test_means_are_rounded_half_up() -> None:
    sums = np.array([[3, -3, 7], [5, -5, 2], [-1, 1, 0]])
    means = np.empty((3, 3), np.int16)
    vectors.round_means(sums, np.array([2, 3, 1]), means)
    assert means.tolist() == [[2, -1, 4], [2, -2, 1], [-1, 1, 0]]


def test_hashes_are_those_of_the_format() -> None:
    """Stored orders depend on them: another value is another format."""
    grid = np.array([[0, 0, 0], [1, -2, 3], [16384, 0, 0]], np.int16)
    found = vectors.hash_vectors(grid)
    assert found.dtype == np.uint64
    assert found.tolist() == [582970776255777392, 10494781932823842838, 16445757912525088788]
    assert not np.isin(vectors.hash_vectors(grid, 1), found).any()
