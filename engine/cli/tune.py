"""`tune`: the tau that people's judgements ask for; and the pairs that are worth judging."""

from __future__ import annotations

import csv
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from engine.cli.console import complain, print_json, print_table
from engine.cli.evaluate import read_taus
from engine.config import BULK_BATCH, Settings, StoreSettings
from engine.errors import InputError, Undecided

if TYPE_CHECKING:
    from engine.cli.models import TuneOptions
    from engine.collection.sweep import Sweep
    from engine.evaluation.judgements import Labels, Pairs
    from engine.evaluation.tuning import Choice

# Fewer ones are told apart by fewer judgements; lower ones join so much that few pairs there are the same.
TAUS = "0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.99"
SHOWN_MAX = 300  # characters of an item's text in a proposal


def tune(settings: Settings, file: Path | None, wish: TuneOptions) -> None:
    """Choose tau for a store, or a file, by judgements; or print pairs to judge.

    Raises Undecided where the judgements do not tell, InputError where they cannot be used.
    """
    if wish.pairs and wish.labels:
        raise InputError("name judged pairs with --pairs, or labels with --labels, not both")
    taus = [tau for tau in read_taus(wish.taus or TAUS) if tau is not None]
    if min(taus) <= 0.0:
        raise InputError("--taus: a tau to choose from lies between 0 and 1")
    from engine.collection.sweep import sweep_of

    with _store(settings, file) as chosen:
        sweep = sweep_of(chosen, taus)
    if wish.propose is not None:
        _propose(sweep, wish.propose, wish)
    else:
        _choose(sweep, settings, file, wish)


@contextmanager
def _store(settings: Settings, file: Path | None) -> Iterator[Settings]:
    """The settings of a store to read: the user's, or one made of the file that is gone afterwards."""
    if file is None:
        yield settings
        return
    from connectors.files.source import FileSource, Options
    from engine.collection.collection import Engine

    with tempfile.TemporaryDirectory(prefix="shoal-tune-") as folder:
        made = settings.model_copy(update={"store": StoreSettings(path=Path(folder))})
        source = FileSource(file, Options(settings.batch.size or BULK_BATCH, settings.limits))
        left_out = 0
        with Engine.open(made) as engine:
            source.begin({})
            for chunk in source.chunks(None):
                left_out += len(chunk.rejects)
                if chunk.rows:
                    engine.apply(chunk.batch)
        if left_out:
            complain(f"{file}: {left_out:,} records cannot be used and are left out")
        yield made


def _propose(sweep: Sweep, count: int, wish: TuneOptions) -> None:
    """Print pairs as CSV, or with --json as JSON lines; --pairs reads both when they are judged."""
    from engine.evaluation.granularity import tree_of
    from engine.evaluation.proposal import propose

    found = propose(tree_of(sweep.taus, sweep.clusters), count, np.random.default_rng(wish.seed))
    if not len(found.first):
        raise Undecided("the clusters are the same at every tau: there is nothing to choose")
    if len(found.first) < count:
        complain(f"there are only {len(found.first):,} pairs")
    columns = (found.first, found.second, found.strata, found.stands_for)
    records = [
        {
            "key": sweep.keys[one],
            "other": sweep.keys[other],
            "same": None,
            "text": _shown(sweep.payloads[one]),
            "other_text": _shown(sweep.payloads[other]),
            "together_up_to": sweep.taus[stratum],
            "stands_for": round(items, 1),
        }
        for one, other, stratum, items in zip(*(column.tolist() for column in columns), strict=True)
    ]
    if wish.json:
        for record in records:
            sys.stdout.write(orjson.dumps(record).decode() + "\n")
        return
    writer = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def _shown(payload: bytes) -> str:
    """What people see of an item: its text or title, else the payload without its label."""
    document = orjson.loads(payload) if payload else ""
    if isinstance(document, dict):
        named = [str(document[name]) for name in ("title", "text") if document.get(name)]
        rest = {name: value for name, value in document.items() if name not in ("label", "image")}
        document = ": ".join(named) if named else rest or ""
    text = document if isinstance(document, str) else orjson.dumps(document).decode()
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."


def _judged(sweep: Sweep, wish: TuneOptions) -> Pairs | Labels:
    from engine.evaluation import judgements

    if wish.pairs:
        return judgements.read_pairs(wish.pairs, sweep.keys)
    if wish.labels:
        return judgements.read_labels(wish.labels, sweep.keys)
    return judgements.labels_of(sweep.payloads, wish.label)


def _choose(sweep: Sweep, settings: Settings, file: Path | None, wish: TuneOptions) -> None:
    from engine.evaluation.tuning import choose, require_gain

    choice = choose(sweep, _judged(sweep, wish), wish.seed)
    try:
        require_gain(choice)
        reason = None
    except Undecided as problem:
        reason = problem
    command = None if reason else _command(choice, settings, file)
    if wish.json:
        print_json(_document(choice, reason, command))
    else:
        _print(choice, reason, command)
    if reason:
        raise reason


def _command(choice: Choice, settings: Settings, file: Path | None) -> str:
    """What applies the chosen tau."""
    words = ["--tau", f"{choice.taus[choice.chosen]:g}"]
    if settings.model.path:
        words += ["-m", str(settings.model.path)]
    if file is not None:
        return shlex.join(["SHOAL_MODEL__TAU=" + words[1], "shoal", "ingest", str(file), *words[2:]])
    return shlex.join(["shoal", "rebuild", *words, "--store", str(settings.store.path)])


def _document(choice: Choice, reason: Undecided | None, command: str | None) -> dict[str, Any]:
    facts = asdict(choice)
    columns = {name: facts.pop(name) for name in ("taus", "f", "low", "high")}
    table = [
        {"tau": tau, "Fb": float(f), "low": float(low), "high": float(high)}
        for tau, f, low, high in zip(*columns.values(), strict=True)
    ]
    return {
        **facts,
        "current": choice.taus[choice.current],
        "chosen": None if reason else choice.taus[choice.chosen],
        "best": choice.taus[choice.chosen],
        "reason": reason and str(reason),
        "command": command,
        "taus": table,
    }


def _print(choice: Choice, reason: Undecided | None, command: str | None) -> None:
    marks = {choice.chosen: "best", choice.current: "current"}
    rows = [
        [f"{tau:g}", f"{f:.3f}", f"{low:.3f} to {high:.3f}", marks.get(at, "")]
        for at, (tau, f, low, high) in enumerate(
            zip(choice.taus, choice.f, choice.low, choice.high, strict=True)
        )
    ]
    columns = {"tau": "right", "Fb": "right", "80 of 100 draws": "left", "": "left"}
    print_table(f"Expected BCubed F by {choice.told:,} judgements:", columns, rows)
    if reason:
        return
    print(
        f"\ntau {choice.taus[choice.chosen]:g} instead of {choice.taus[choice.current]:g}: expected gain "
        f"{choice.gain:+.3f} ({choice.gain_low:+.3f} to {choice.gain_high:+.3f}), "
        f"better with probability {choice.sure:.2f}."
    )
    print("One tau is chosen, for the levels above level 0.")
    print(f"To apply it: {command}")
