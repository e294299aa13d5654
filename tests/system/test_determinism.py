"""The pinned arithmetic, whatever is imported first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SHOW = """
import numpy
from threadpoolctl import threadpool_info
numpy.ones((2, 2)) @ numpy.ones((2, 2))
print([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"])
"""


@pytest.mark.parametrize("imports", ["import engine, numpy", "import numpy, engine"])
@pytest.mark.parametrize(("chosen", "threads"), [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, 2)])
def test_numpys_products_have_one_thread_unless_another_number_is_chosen(
    imports: str, chosen: dict[str, str], threads: int
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS", "OMP"))}
    done = subprocess.run(
        [sys.executable, "-c", imports + SHOW],
        env={**kept, **chosen},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"[{min(threads, os.cpu_count() or 1)}]"
