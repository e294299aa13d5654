"""A store of toys: what it holds, for comparison with another one."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import numpy as np

from engine.errors import StoreError
from engine.storage import schema
from engine.storage.reader import View
from engine.storage.schema import PAIR, SIZE
from engine.storage.store import Store
from engine.types import Loaded
from tests.support import warm_python
from tests.support.fake_collection import ROOT, Toy

CONFIG = {"collection": "toy", "dim": None, "model": "m" * 64, "k": 10, "tau": 0.1, "arithmetic": "avx2"}


def contents(path: Path) -> dict[str, list[schema.Row]]:
    """Return all rows of all tables, without checksums."""
    with Store.open(path, free_bytes=0) as store:
        return {table: list(store.rows(table)) for table in schema.TABLES}


def version_of(path: Path) -> int:
    """The newest version of a store that another process may write; 0: there is none yet."""
    try:
        with View.open(path) as view:
            return view.version
    except StoreError:
        return 0


def assert_loaded(found: Loaded, toy: Toy) -> None:
    """Everything is back, to the bit."""
    wanted = toy.loaded()
    for field in dataclasses.fields(Loaded):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if not dataclasses.is_dataclass(one):
            one, other = (one,), (other,)
        else:
            one, other = ([getattr(part, f.name) for f in dataclasses.fields(part)] for part in (one, other))
        for a, b in zip(one, other, strict=True):
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype, field.name
                assert np.array_equal(a, b), field.name
            else:
                assert a == b, field.name


def derived(path: Path) -> dict[str, set[tuple[int, ...]]]:
    """The tables that answer queries, as sets of numbers."""
    rows = contents(path)
    numbers = {
        table: {PAIR.unpack(key) for key, _ in rows[table]}
        for table in ("copies", "members", "cluster_trees", "endings")
    }
    return numbers | {"sizes": {SIZE.unpack(key) for key, _ in rows["sizes"]}}


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script that imports the engine, in a process of its own."""
    command = [warm_python.executable(), "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
