"""What every benchmark prints: the machine, the versions, a table; and the same as JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "dgl", "numpy", "numba", "hnswlib", "lmdb")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    return parser


def machine() -> dict[str, Any]:
    """Processor, cores, memory and versions, as they matter to the figures."""
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in facts.items()}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as they need; numbers to the right."""
    cells = [[_text(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for at, row in enumerate(cells):
        print("  ".join(cell.ljust(w) if c == 0 else cell.rjust(w)
                        for c, (cell, w) in enumerate(zip(row, widths, strict=True))))  # fmt: skip
        if at == 0:
            print("  ".join("-" * width for width in widths))


def print_markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """The same as a Markdown table."""
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(_text(cell) for cell in row) + " |")


def finish(figures: dict[str, Any], file: Path | None) -> None:
    """Print the machine, and write the figures where asked."""
    facts = machine()
    print("\n" + ", ".join(f"{key} {value}" for key, value in facts.items()))
    if file:
        file.write_text(json.dumps({**figures, "machine": facts}, indent=1) + "\n")
        print(f"written to {file}", file=sys.stderr)


def _text(cell: Any) -> str:
    return f"{cell:,.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
