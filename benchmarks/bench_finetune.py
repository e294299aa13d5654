"""Fine-tuning the universal model on ten labelled classes: what it gains on the other classes.

For each file and draw: whole classes of `--least` items or more are labelled, the others are not. Then
`shoal train --start` as it is, with its own choice between the fine-tuned model and the start. The whole
collection is clustered in bulk; BCubed F is that of the items of the classes that were not labelled. Prints
the gain of each draw, 0 where the start was kept. Name files that the model was not trained on.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import arguments, finish, print_markdown
from engine.evaluation.scores import f_of_classes
from engine.finetuning.collection import FinetuneCollection
from engine.finetuning.finetune import FinetunePlan, read_collections, tuned
from engine.finetuning.folds import Fold
from engine.model.linkage import LinkageModel
from engine.training.datasets import UNKNOWN

COLUMNS = ("set", "items", "start", "gains", "mean", "better", "taken", "seconds")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="labelled .npz files: emb, labels")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--least", type=int, default=3, help="items of a class that is labelled")
    chosen = parser.parse_args()
    start = LinkageModel.load()
    rows = []
    for file in chosen.files:
        (collection,) = read_collections([file], None, start)
        draws = [drawn(collection, start, seed, chosen.classes, chosen.least) for seed in range(chosen.draws)]
        rows.append({"set": file.stem, "items": len(collection.labels), "draws": draws})
        for draw in draws:
            print(file.stem, draw, flush=True)
    print_markdown(COLUMNS, [_cells(row) for row in rows])
    finish({"classes": chosen.classes, "least": chosen.least, "sets": rows}, chosen.json)


def drawn(
    collection: FinetuneCollection, start: LinkageModel, seed: int, count: int, least: int
) -> dict[str, Any]:
    """Figures of one draw of labelled classes."""
    classes, sizes = np.unique(collection.labels, return_counts=True)
    few = np.random.default_rng(seed).permutation(classes[sizes >= least])[:count]
    others = Fold(collection, np.setdiff1d(classes, few))
    labels = np.where(np.isin(collection.labels, few), collection.labels, UNKNOWN)
    began = time.process_time()
    model, about = tuned([replace(collection, labels=labels)], [], start, FinetunePlan(seed=seed))
    seconds = time.process_time() - began
    before, after = (
        float(f_of_classes(others.scores(collection.clusters(each)))[0]) for each in (start, model)
    )
    return {
        "labelled": int((labels != UNKNOWN).sum()),
        "start": before,
        "gain": after - before,
        "kept": about["kept_start"],
        "held_out": about["verdict"],
        "seconds": seconds,
    }


def _cells(row: dict[str, Any]) -> list[Any]:
    draws = row["draws"]
    gains = [draw["gain"] for draw in draws]
    return [
        row["set"],
        row["items"],
        float(np.mean([draw["start"] for draw in draws])),
        " ".join("kept" if draw["kept"] else f"{draw['gain']:+.3f}" for draw in draws),
        f"{np.mean(gains):+.3f}",
        f"{sum(gain > 0 for gain in gains)} of {len(draws)}",
        f"{sum(not draw['kept'] for draw in draws)} of {len(draws)}",
        float(np.mean([draw["seconds"] for draw in draws])),
    ]


if __name__ == "__main__":
    main()
