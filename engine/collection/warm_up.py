"""Compile and load the kernels that batches need, before one comes and its sender waits for that."""

from __future__ import annotations

import numpy as np

from engine.clustering import pipeline
from engine.collection.build import empty_state, load_model
from engine.config import Settings
from engine.types import Batch
from engine.vectors import quantize

ITEMS, DIM = 512, 8
SEED = 0


def warm_up(settings: Settings) -> None:
    """Cluster made-up items in memory, with the settings' model and index; move and delete some, then one.

    Raises InputError: the model cannot be used.
    """
    model = load_model(settings)
    dim = model.dim or DIM
    state = empty_state(settings, model, dim)
    rng = np.random.default_rng(SEED)
    for items, deletes in ((ITEMS, 0), (ITEMS // 4, ITEMS // 8), (1, 0)):
        vectors = quantize(rng.standard_normal((items, dim)))[0]
        keys = [b"%d" % number for number in range(items)]
        gone = [b"%d" % (ITEMS - 1 - number) for number in range(deletes)]
        pipeline.step(state, Batch(keys, vectors, np.zeros(items, np.int64), [b""] * items, gone), 0)
