"""Pin the arithmetic before NumPy, torch and DGL are loaded, and name what came of it.

The package imports this module before anything else. The clustering is a function of its input to the
bit, but only on one arithmetic: kernels for AVX2 and AVX-512 add in different orders. What can be pinned is
pinned here; `fingerprint` names the rest, so that a store written elsewhere is noticed and what
is derived in it is computed again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

PINS = {
    "MKL_CBWR": "AVX2,STRICT",  # one code branch in MKL's products, whatever the alignment
    "ATEN_CPU_CAPABILITY": "avx2",  # and in torch's own kernels
    "DGLBACKEND": "pytorch",  # else DGL asks on the terminal and writes to the home folder
    # No bits, but speed: threads that spin while they wait take the core from those they wait for.
    # Measured on two busy cores: the model's share of a batch 20 times faster.
    "OMP_WAIT_POLICY": "passive",
    # NumPy's OpenBLAS knows no such policy: after each product its threads spin for 27 ms. Measured: half of
    # the processor's time, and a fifth of a small batch. Read when NumPy loads: import Shoal first.
    "OPENBLAS_NUM_THREADS": "1",
}

for name, value in PINS.items():
    os.environ.setdefault(name, value)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch works on one thread meanwhile: more of them may add in the order in which they come."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def fingerprint() -> str:
    """Return a short name of this process's arithmetic: equal names, equal bits.

    It is the hash of a fixed small computation with everything a model uses, on one thread as there: a
    matrix product, a sum, exponentials, logarithms and square roots.
    """
    import numpy as np
    import torch

    grid = np.arange(1024 * 48, dtype=np.int64)
    left = torch.from_numpy(((grid * 7919 % 2003 - 1001) / 517).astype(np.float32).reshape(1024, 48))
    right = torch.from_numpy(
        ((grid[: 48 * 48] * 104729 % 1009 - 504) / 811).astype(np.float32).reshape(48, 48)
    )
    product = torch.addmm(right[0], left, right)
    parts = (product, torch.sigmoid(product[:, 0] / 16), product.abs().sqrt(), product.mean(1))
    digest = hashlib.sha256(torch.__version__.encode())
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    digest.update(np.log(np.abs(product.numpy().astype(np.float64)) + 1.0).tobytes())
    return digest.hexdigest()[:16]
