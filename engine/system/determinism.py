"""Pins the floating-point arithmetic before torch and DGL load, and fingerprints the result.

Importing the package imports this module first. The clustering is a bit-exact function of its input, but
only on one arithmetic: kernels for AVX2 and AVX-512 add in different orders. What can be pinned is pinned
here; `fingerprint` names the rest, so that a store written on another arithmetic is noticed, and whatever is
derived in it is computed again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PINS = {
    "MKL_CBWR": "AVX2,STRICT",  # one code branch in MKL's products, whatever the alignment
    "ATEN_CPU_CAPABILITY": "avx2",  # and in torch's own kernels
    "DGLBACKEND": "pytorch",  # else DGL asks on the terminal and writes to the home folder
    # The rest is speed, not bits. Threads that spin while they wait take the core from those they wait for.
    # Measured on two busy cores: the model's share of a batch is 20 times faster with passive waiting.
    "OMP_WAIT_POLICY": "passive",
    # NumPy's OpenBLAS has no such policy: after each product its threads spin for 27 ms. Measured: half of
    # the processor time, and a fifth of a small batch.
    "OPENBLAS_NUM_THREADS": "1",
}


def pin() -> None:
    """Set the environment variables that are not set yet, and limit OpenBLAS where NumPy has loaded already.

    OpenBLAS reads the variable when NumPy loads; afterwards only threadpoolctl reaches it. Measured for 50
    products of 600 x 600, 30 ms apart: 1.5 s of processor time without the limit, 0.18 s with it, whichever
    way it was set.
    """
    for name, value in PINS.items():
        os.environ.setdefault(name, value)
    if "numpy" in sys.modules and os.environ["OPENBLAS_NUM_THREADS"] == PINS["OPENBLAS_NUM_THREADS"]:
        from threadpoolctl import threadpool_limits

        threadpool_limits(1, "blas")


pin()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch on one thread meanwhile: several may add in the order in which they finish."""
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

    It hashes a small fixed computation with every operation of the model, on one thread as there: a matrix
    product, a sum, exponentials, logarithms and square roots.
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
