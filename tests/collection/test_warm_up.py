"""After it no batch waits for a compiler."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from tests.support import warm_python

# In a process that has loaded no kernel yet.
_SCRIPT = """
import json, sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from engine.collection.collection import Engine
from engine.collection.warm_up import warm_up
from engine.config import load

def loaded():
    engine = [module for name, module in list(sys.modules.items()) if name.startswith("engine.")]
    found = [each for module in engine for each in vars(module).values() if isinstance(each, Dispatcher)]
    return {f"{each.py_func.__module__}.{each.py_func.__name__}" for each in found if each.signatures}

settings = load(None, {"store.path": sys.argv[1], "index.kind": sys.argv[2]})
none = loaded()
warm_up(settings)
warm = loaded()
rng = np.random.default_rng(1)
keys = [str(number) for number in range(400)]
vectors = rng.standard_normal((400, 48)) + 2 * np.repeat(rng.standard_normal((20, 48)), 20, axis=0)
with Engine.open(settings) as engine:
    engine.upsert(keys, vectors)
    engine.upsert(keys[300:], vectors[:100] + 0.1)
    engine.upsert(["one"], vectors[:1] + 0.2)
    engine.delete(keys[:50])
    print(json.dumps([len(none), len(warm), sorted(loaded() - warm)]))
"""


@pytest.mark.process
@pytest.mark.parametrize("index", ["hnsw", "exact"])
def test_batches_find_all_that_they_need(tmp_path: Path, index: str) -> None:
    command = [warm_python.executable(threads=True), "-c", _SCRIPT, str(tmp_path / "store"), index]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    before, warm, late = json.loads(done.stdout.splitlines()[-1])
    assert (before, late) == (0, [])
    assert warm > 0
