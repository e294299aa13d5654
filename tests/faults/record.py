"""A file with one line of JSON for each seed done, so that a long run can be stopped and gone on with."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults import disk, zygote
from tests.faults.judge import Wrong

Do = Callable[[int, Path], dict[str, Any]]


def parser(module: str, text: str | None, seeds: int | None = None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if seeds is not None:
        made.add_argument("--seeds", type=int, default=seeds, help=f"how many (default: {seeds})")
    made.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    made.add_argument("--out", type=Path, help="one line a seed; what is in it is not done again")
    return made


def keep(module: str, seeds: Mapping[str, Sequence[int]], out: Path | None, do: Mapping[str, Do]) -> int:
    """Does the seeds of each kind that are not in `out` yet; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is cleaned up
    done = {(line["kind"], line["seed"]): line["wrong"] for line in _lines(out)}
    left = [(kind, seed) for kind in seeds for seed in seeds[kind] if (kind, seed) not in done]
    if left:
        zygote.warm()
    wrong = sum(bool(done.get((kind, seed))) for kind in seeds for seed in seeds[kind])
    for kind, seed in left:
        line = _do(kind, seed, do[kind])
        if out:
            with open(out, "a") as file:
                file.write(json.dumps(line) + "\n")
        if line["wrong"]:
            wrong += 1
            option = "seeds" if kind == "simulation" else kind
            print(f"{kind}, seed {seed}: {line['wrong']}", flush=True)
            count = 10 if kind == "daemon" else 1
            print(f"again: python -m {module} --first {seed} --{option} {count}", flush=True)
    print(f"{sum(map(len, seeds.values()))} seeds, {len(left)} of them now; {wrong} failed")
    return 1 if wrong else 0


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _lines(out: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []


def _do(kind: str, seed: int, do: Do) -> dict[str, Any]:
    begun, folder = time.perf_counter(), disk.scratch()
    line: dict[str, Any] = {"kind": kind, "seed": seed, "wrong": ""}
    try:
        line |= do(seed, folder)
    except Wrong as found:
        line["wrong"] = str(found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return line | {"seconds": round(time.perf_counter() - begun, 2)}
