"""Collections of few topics: is their number found, and are their items together?

Cells are 1, 2, 3, 5 blobs x 2, 16, 384 dimensions x 50, 300, 2,000 items x spreads of .1 to .5
(`benchmarks.blobs` says of what), some seeds each; a cell shows the median number of clusters and the
median BCubed F. Then what people try first, near-copies, and random directions, which have to stay
apart. Clustered in bulk with the exact index at the model's default settings; identical vectors are one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.blobs import Example, Float32, Int64, blobs, directions, examples
from benchmarks.report import arguments, finish, print_markdown
from engine.evaluation import scores
from engine.evaluation.bulk import hierarchy, measure_epoch, partitions
from engine.model.linkage import PRETRAINED, LinkageModel

COUNTS, DIMS, ITEMS, SPREADS = (1, 2, 3, 5), (2, 16, 384), (50, 300, 2000), (0.1, 0.2, 0.3, 0.4, 0.5)
QUICK_ITEMS, QUICK_SPREADS, QUICK_SEEDS = (50, 300), (0.1, 0.3, 0.5), 2
NOISE = ((32, 300), (32, 2000), (128, 2000), (384, 300), (384, 2000), (1000, 2000))  # dimensions, items
SMALL = 5  # items that a chance cluster of random directions may have


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="collections of each cell")
    parser.add_argument("--quick", action="store_true", help="small cells only, two seeds: a minute")
    parser.add_argument("--model", type=Path, default=PRETRAINED, help="weights (.safetensors)")
    chosen = parser.parse_args()
    model = LinkageModel.load(chosen.model)
    items, spreads = (QUICK_ITEMS, QUICK_SPREADS) if chosen.quick else (ITEMS, SPREADS)
    seeds = min(chosen.seeds, QUICK_SEEDS) if chosen.quick else chosen.seeds
    cells = [measure_cell(model, cell, seeds) for cell in product(COUNTS, DIMS, items, spreads)]
    print_cells(cells, items, spreads)
    right = statistics.mean(cell["clusters"] == cell["blobs"] for cell in cells)
    together = statistics.mean(cell["Fb"] >= 0.9 for cell in cells)
    print(f"\n{len(cells)} cells: clusters right in {right:.0%}, BCubed F >= .9 in {together:.0%}\n")
    tried = [measure_example(model, at, seeds) for at in range(len(list(examples(0))))]
    print_markdown(["example", "topics", "clusters", "Fb", "worst Fb"], [list(one.values()) for one in tried])
    print()
    noise = [measure_noise(model, dim, n, seeds) for dim, n in NOISE if n in items]
    share = f"share in clusters of more than {SMALL}"
    print_markdown(["random directions", share], [list(one.values()) for one in noise])
    figures = {"seeds": seeds, "right": right, "together": together, "cells": cells, "examples": tried}
    finish({"model": model.sha256, **figures, "noise": noise}, chosen.json)


def clusters(model: LinkageModel, emb: Float32) -> Int64:
    """The final cluster of each row (n,)."""
    epoch = measure_epoch(emb, model.default_epoch)
    final = partitions(hierarchy(emb, model, model.tau, model.max_levels, epoch, base_tau=model.base_tau))[-1]
    return np.unique(final, return_inverse=True)[1]


def measure(model: LinkageModel, many: Sequence[Example]) -> tuple[float, list[float]]:
    """The median number of clusters and each collection's BCubed F."""
    found = [clusters(model, one.emb) for one in many]
    numbers = [len(np.unique(part)) for part in found]
    scored = [scores.bcubed_f(one.labels, part) for one, part in zip(many, found, strict=True)]
    return float(statistics.median(numbers)), scored


def measure_cell(model: LinkageModel, cell: tuple[int, int, int, float], seeds: int) -> dict[str, Any]:
    count, dim, items, spread = cell
    number, scored = measure(model, [blobs(count, dim, items, spread, seed) for seed in range(seeds)])
    where = {"blobs": count, "dim": dim, "items": items, "spread": spread}
    return {**where, "clusters": number, "Fb": float(statistics.median(scored))}


def measure_example(model: LinkageModel, at: int, seeds: int) -> dict[str, Any]:
    many = [list(examples(seed))[at] for seed in range(seeds)]
    number, scored = measure(model, many)
    topics = len(np.unique(many[0].labels))
    median = float(statistics.median(scored))
    return {"name": many[0].name, "topics": topics, "clusters": number, "Fb": median, "worst": min(scored)}


def measure_noise(model: LinkageModel, dim: int, items: int, seeds: int) -> dict[str, Any]:
    shares = [in_large(clusters(model, directions(dim, items, seed).emb)) for seed in range(seeds)]
    return {"name": directions(dim, items, 0).name, "share": statistics.mean(shares)}


def in_large(part: Int64) -> float:
    """The share of items in clusters of more than `SMALL`."""
    sizes = np.bincount(part)
    return float((sizes[part] > SMALL).mean())


def print_cells(cells: Sequence[dict[str, Any]], items: Sequence[int], spreads: Sequence[float]) -> None:
    """A table for each number of items: clusters / BCubed F by spread."""
    for n in items:
        rows = []
        for count, dim in product(COUNTS, DIMS):
            of = [c for c in cells if (c["blobs"], c["dim"], c["items"]) == (count, dim, n)]
            rows.append([count, dim, *(f"{c['clusters']:g} / {c['Fb']:.2f}" for c in of)])
        print(f"\n{n:,} items: clusters / BCubed F\n")
        print_markdown(["blobs", "dimensions", *(f"spread {s}" for s in spreads)], rows)


if __name__ == "__main__":
    main()
