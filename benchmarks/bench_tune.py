"""`shoal tune` on labelled collections: what judged pairs gain, of what the best tau would.

For each file: proposes pairs, judges them by the labels (`--wrong`: a share of them wrongly), and chooses
tau, for several seeds. Prints BCubed F at the default tau, at the chosen one (the mean over seeds, and of the
worst seed) and at the best of the taus. Name files on which no constant of the tuning was chosen.

With `--labelled SHARE` (a half at least) that share of the items has labels instead, and level 0's tau is
chosen, too; the best is then that of both taus. `--most N`: whole classes of a file, drawn at random, up to N
items.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import arguments, finish, print_markdown
from engine import Engine
from engine.cli.evaluate import read_taus
from engine.cli.tune import TAUS
from engine.collection.sweep import Sweep, Sweeper
from engine.config import load
from engine.errors import Undecided
from engine.evaluation import scores
from engine.evaluation.base_tuning import BASE_TAUS, choose_base
from engine.evaluation.evaluate import Labelled, read_labelled
from engine.evaluation.granularity import Tree, tree_of
from engine.evaluation.judgements import Labels, Pairs
from engine.evaluation.proposal import propose
from engine.evaluation.tuning import SURE, choose, require_gain
from engine.types import Int64

COLUMNS = ("items", "default", "chosen", "worst", "best", "gain", "of", "kept", "told")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="labelled .npz files: emb, labels")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--wrong", type=float, default=0.0, help="share of the judgements that are wrong")
    parser.add_argument("--labelled", type=float, default=None, help="share of the items, instead of pairs")
    parser.add_argument("--most", type=int, default=None, help="items of a file")
    parser.add_argument("--index", choices=["hnsw", "exact"], default="hnsw")
    parser.add_argument("--model", type=str, default=None, help="default: the one that ships")
    chosen = parser.parse_args()
    rows = []
    for file in chosen.files:
        labelled = cut(read_labelled(file), chosen.most)
        if chosen.labelled is None:
            (sweep,) = swept(labelled, chosen.index, chosen.model)
            figures = judged(sweep, labelled, chosen.pairs, chosen.seeds, chosen.wrong)
        else:
            sweeps = swept(labelled, chosen.index, chosen.model, BASE_TAUS)
            figures = measured(sweeps, labelled, chosen.labelled, chosen.seeds)
        rows.append({"set": file.stem, **figures})
        print(rows[-1], flush=True)
    print_markdown(("set", *COLUMNS), [[row[name] for name in ("set", *COLUMNS)] for row in rows])
    gain, of = (float(np.mean([row[name] for row in rows])) for name in ("gain", "of"))
    worst = min(rows, key=lambda row: row["gain"])
    print(
        f"\nmean gain {gain:+.4f} of {of:+.4f}; the set that loses most: {worst['set']} {worst['gain']:+.4f}"
    )
    asked = {"pairs": chosen.pairs, "seeds": chosen.seeds, "wrong": chosen.wrong, "index": chosen.index}
    asked |= {"labelled": chosen.labelled, "most": chosen.most}
    finish({**asked, "rows": rows, "gain": gain, "of": of}, chosen.json)


def cut(labelled: Labelled, most: int | None) -> Labelled:
    """Whole classes, drawn at random, of `most` items at most."""
    if most is None or len(labelled.keys) <= most:
        return labelled
    kept = np.zeros(len(labelled.keys), np.bool_)
    for name in np.random.default_rng(0).permutation(np.unique(labelled.labels)):
        members = labelled.labels == name
        if kept.sum() + members.sum() <= most:
            kept |= members
    keys = [str(row) for row in range(int(kept.sum()))]
    columns = {name: getattr(labelled, name)[kept] for name in ("emb", "labels", "times")}
    return replace(labelled, keys=keys, **columns)


def swept(labelled: Labelled, index: str, model: str | None, base_taus: Sequence[float] = ()) -> list[Sweep]:
    """The clusters of a labelled set in a store at the taus of `shoal tune`, its own level 0 first."""
    taus = [tau for tau in read_taus(TAUS) if tau is not None]
    with tempfile.TemporaryDirectory() as folder:
        settings = load(None, {"store.path": f"{folder}/store", "index.kind": index, "model.path": model})
        with Engine.open(settings) as engine:
            engine.upsert(labelled.keys, labelled.emb)
        sweeper = Sweeper(settings)
    others = [tau for tau in base_taus if tau != sweeper.shape.base_tau]
    return [sweeper.sweep(taus), *(sweeper.sweep(taus, tau) for tau in others)]


def measured(sweeps: list[Sweep], labelled: Labelled, share: float, seeds: int) -> dict[str, Any]:
    """Figures of one set where a share of the items has labels; `kept`: how often level 0's tau stayed."""
    own, *others = sweeps
    labels = labelled.labels[[int(key) for key in own.keys]]
    exact = {each.base_tau: [scores.bcubed_f(labels, part) for part in each.clusters] for each in sweeps}
    default = exact[own.base_tau][own.current]
    taken, told = [], []
    for seed in range(seeds):
        rows = np.random.default_rng(seed).permutation(len(labels))[: math.ceil(share * len(labels))]
        known = Labels(np.sort(rows), labels[np.sort(rows)])
        choice = choose(own, known, seed)
        base = choose_base(own, others, known, choice, seed)
        tau = choice.taus[choice.chosen if choice.sure >= SURE else choice.current]
        told.append((base.base_tau, base.tau) if base else (own.base_tau, tau))
        taken.append(exact[told[-1][0]][own.taus.index(told[-1][1])])
    best = max(max(each) for each in exact.values())
    return {
        "items": len(labels),
        "default": default,
        "chosen": float(np.mean(taken)),
        "worst": min(taken),
        "best": best,
        "gain": float(np.mean(taken)) - default,
        "of": best - default,
        "kept": f"{sum(base == own.base_tau for base, _ in told)} of {seeds}",
        "told": "/".join(f"{base or 'own'}:{tau:g}" for base, tau in told),
    }


def judged(sweep: Sweep, labelled: Labelled, pairs: int, seeds: int, wrong: float) -> dict[str, Any]:
    """Figures of one set over all seeds. `kept`: how often the default stayed."""
    labels = labelled.labels[[int(key) for key in sweep.keys]]
    exact = np.array([scores.bcubed_f(labels, part) for part in sweep.clusters])
    tree = tree_of(sweep.taus, sweep.clusters)
    found = [chosen_tau(sweep, tree, labels, pairs, seed, wrong) for seed in range(seeds)]
    default, taken = exact[sweep.current], exact[found]
    return {
        "items": len(labels),
        "default": float(default),
        "chosen": float(taken.mean()),
        "worst": float(taken.min()),
        "best": float(exact.max()),
        "gain": float(taken.mean() - default),
        "of": float(exact.max() - default),
        "kept": f"{found.count(sweep.current)} of {seeds}",
        "told": "/".join(f"{sweep.taus[at]:g}" for at in found),
    }


def chosen_tau(sweep: Sweep, tree: Tree, labels: Int64, pairs: int, seed: int, wrong: float) -> int:
    """Where in the taus the choice is; the current one where the judgements do not tell."""
    rng = np.random.default_rng(seed)
    proposal = propose(tree, pairs, rng)
    same = labels[proposal.first] == labels[proposal.second]
    same ^= rng.random(len(same)) < wrong
    try:
        choice = choose(sweep, Pairs(proposal.first, proposal.second, same), seed)
        require_gain(choice)
    except Undecided:
        return sweep.current
    return choice.chosen


if __name__ == "__main__":
    main()
