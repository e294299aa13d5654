"""`tune`: choose tau by people's judgements, and propose pairs to judge."""

from __future__ import annotations

import csv
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from engine.cli.console import complain, print_json, print_table, tell_noise, tell_unused
from engine.cli.evaluate import read_taus
from engine.config import BULK_BATCH, Settings
from engine.errors import InputError, Undecided, counted

if TYPE_CHECKING:
    from connectors.chunks import Remark
    from engine.cli.models import TuneOptions
    from engine.collection.sweep import Sweep, Sweeper
    from engine.evaluation.base_tuning import BaseChoice
    from engine.evaluation.judgements import Labels, Pairs
    from engine.evaluation.tuning import Choice

# Fewer taus need fewer judgements to tell apart; lower ones join so much that few pairs there are the same.
TAUS = "0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.99"
SHOWN_MAX = 300  # characters of an item's text in a proposal


def tune(
    settings: Settings,
    file: Path | None,
    wish: TuneOptions,
    store: Path | None = None,
    config: Path | None = None,
) -> None:
    """Choose tau for a store, or a file, by judgements; or print pairs to judge.

    `store` and `config`: as the command line names them.

    Raises Undecided where the judgements do not decide, InputError where they cannot be used.
    """
    if wish.pairs and wish.labels:
        raise InputError("name judged pairs with --pairs, or labels with --labels, not both")
    if wish.label is not None and (wish.pairs or wish.labels):
        raise InputError("--label names a field of payloads: name neither --pairs nor --labels with it")
    if wish.propose is not None and (wish.pairs or wish.labels or wish.label is not None):
        raise InputError(
            "--propose prints pairs before they are judged: name no --pairs, --labels or --label with it"
        )
    if file and store:
        raise InputError("name either a file, or a store with --store")
    taus = [tau for tau in read_taus(wish.taus or TAUS, "--taus") if tau is not None]
    if min(taus) <= 0.0:
        raise InputError("--taus: a tau to choose from lies between 0 and 1")
    from engine.collection.sweep import Sweeper

    with _store(settings, file) as chosen:
        sweeper = Sweeper(chosen)
    if wish.propose is not None:
        _propose(sweeper.sweep(taus), wish.propose, wish)
        return
    found = _choose(sweeper, taus, wish)
    command = None if found.reason else _command(found, settings, file, config)
    if wish.json:
        print_json(_document(found, command))
    else:
        _print(found, command)
    if found.reason:
        raise found.reason


@dataclass(frozen=True, slots=True)
class Found:
    """What to set. `reason`: why nothing."""

    choice: Choice
    base: BaseChoice | None  # None: level 0's tau stays
    base_now: float | None  # level 0's; None: the model's
    measured: bool  # so many labels that level 0's tau was chosen, too
    reason: Undecided | None

    @property
    def tau(self) -> float:
        return self.base.tau if self.base else self.choice.taus[self.choice.chosen]


@contextmanager
def _store(settings: Settings, file: Path | None) -> Iterator[Settings]:
    """Yield settings of the store to read: the user's, or a temporary one made of the file."""
    if file is None:
        yield settings
        return
    from connectors.files.source import FileSource, Options
    from engine.collection.collection import Engine

    with tempfile.TemporaryDirectory(prefix="shoal-tune-") as folder:
        made = settings.in_folder(Path(folder))
        source = FileSource(file, Options(settings.batch.size or BULK_BATCH, settings.limits))
        left_out: list[Remark] = []
        superseded = 0
        with Engine.open(made) as engine:
            source.begin({})
            for chunk in source.chunks(None):
                left_out += chunk.rejects
                if chunk.rows:
                    applied = engine.apply(chunk.batch)
                    superseded += chunk.superseded + applied.moved + applied.unchanged + applied.updated
            if not len(engine):
                raise InputError(f"{file} has no records that can be used")
        tell_unused(file, left_out, superseded)
        yield made


def _propose(sweep: Sweep, count: int, wish: TuneOptions) -> None:
    """Print pairs as CSV, or with --json as JSON lines; --pairs reads both when they are judged."""
    from engine.evaluation.granularity import tree_of
    from engine.evaluation.proposal import propose

    found = propose(tree_of(sweep.taus, sweep.clusters), count, np.random.default_rng(wish.seed))
    if not len(found.first):
        raise Undecided("the clusters are the same at every tau: there is nothing to choose")
    if len(found.first) < count:
        complain(f"no more than {counted(len(found.first), 'pair')} can be proposed")
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
    """Return what people see of an item: its text or title, else the payload without its label."""
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
        found = judgements.read_labels(wish.labels, sweep.keys)
    else:
        found = judgements.labels_of(sweep.payloads, wish.label or "label")
    tell_noise(wish.labels or "payloads", found.names, found.labels)
    return found


def _choose(sweeper: Sweeper, taus: Sequence[float], wish: TuneOptions) -> Found:
    from engine.evaluation.base_tuning import BASE_TAUS, choose_base
    from engine.evaluation.judgements import Labels
    from engine.evaluation.tuning import choose, covers, require_gain

    sweep = sweeper.sweep(taus)
    judged = _judged(sweep, wish)
    choice = choose(sweep, judged, wish.seed)
    base, measured = None, isinstance(judged, Labels) and covers(sweep, judged)
    if isinstance(judged, Labels) and measured:
        others = (sweeper.sweep(taus, base) for base in BASE_TAUS if base != sweeper.shape.base_tau)
        base = choose_base(sweep, others, judged, choice, wish.seed)
    reason = None
    if base is None:
        try:
            require_gain(choice)
        except Undecided as problem:
            reason = problem
    return Found(choice, base, sweep.base_tau, measured, reason)


def _command(found: Found, settings: Settings, file: Path | None, config: Path | None) -> str:
    """Return the command that applies the chosen taus, and keeps the other settings. `config`: of -c."""
    base = found.base.base_tau if found.base else found.base_now
    told = {"--tau": found.tau} | ({} if base is None else {"--base-tau": base})
    variables: dict[str, object] = {}
    if settings.model.adapter:
        variables["SHOAL_MODEL__ADAPTER"] = settings.model.adapter
    others = ["-m", str(settings.model.path)] if settings.model.path else []
    others += ["-c", str(config)] if config else []
    if file is not None:
        names = {"--tau": "SHOAL_MODEL__TAU", "--base-tau": "SHOAL_MODEL__BASE_TAU"}
        variables |= {names[flag]: tau for flag, tau in told.items()}
        words = ["shoal", "ingest", str(file), *others]
    else:
        flags = [word for name, tau in told.items() for word in (name, str(tau))]
        words = ["shoal", "rebuild", *flags, *others, "--store", str(settings.store.path)]
    given = [f"{name}={shlex.quote(str(value))}" for name, value in variables.items()]
    return " ".join([*given, shlex.join(words)])


def _document(found: Found, command: str | None) -> dict[str, Any]:
    choice, reason = found.choice, found.reason
    facts = asdict(choice)
    columns = {name: facts.pop(name) for name in ("taus", "f", "low", "high")}
    table = [
        {"tau": tau, "Fb": float(f), "low": float(low), "high": float(high)}
        for tau, f, low, high in zip(*columns.values(), strict=True)
    ]
    return {
        **facts,
        "current": choice.taus[choice.current],
        "chosen": None if reason else found.tau,
        "best": choice.taus[choice.chosen],
        "base": found.base and asdict(found.base),
        "reason": reason and str(reason),
        "command": command,
        "taus": table,
    }


def _print(found: Found, command: str | None) -> None:
    choice, base = found.choice, found.base
    marks = {choice.chosen: "best", choice.current: "current"}
    rows = [
        [f"{tau:g}", f"{f:.3f}", f"{low:.3f} to {high:.3f}", marks.get(at, "")]
        for at, (tau, f, low, high) in enumerate(
            zip(choice.taus, choice.f, choice.low, choice.high, strict=True)
        )
    ]
    columns = {"tau": "right", "Fb": "right", "80 of 100 draws": "left", "": "left"}
    print_table(f"Expected BCubed F by {counted(choice.told, 'judgement')}:", columns, rows)
    if more := choice.at_all + choice.at_none:
        at_all, at_none = counted(choice.at_all, "pair"), counted(choice.at_none, "pair")
        print(
            f"{counted(more, 'judgement')} more {'does' if more == 1 else 'do'} not tell taus apart: "
            f"{at_all} together at every tau, {at_none} at none."
        )
    if found.reason:
        return
    print()
    if choice.chosen != choice.current:
        print(
            f"tau {choice.taus[choice.chosen]:g} instead of {choice.taus[choice.current]:g}: expected gain "
            f"{_gain(choice)}."
        )
    if base:
        over = "a further gain" if _is_first_taken(choice) else "over the present taus a gain"
        print(f"Level 0's own tau {base.base_tau:g}, and tau {base.tau:g} above it: {over} of {_gain(base)}.")
    elif found.measured:
        print("Level 0's own tau stays: no other one gains surely.")
    else:
        print("Level 0's own tau stays: to choose that too, label half of the items.")
    print(f"To apply {'both' if base else 'it'}: {command}")


def _is_first_taken(choice: Choice) -> bool:
    """Whether what level 0's tau gains is counted from the tau that was chosen before, not the present."""
    from engine.evaluation.tuning import SURE

    return choice.chosen != choice.current and choice.sure >= SURE


def _gain(of: Choice | BaseChoice) -> str:
    low, high = f"{of.gain_low:+.3f}", f"{of.gain_high:+.3f}"
    return f"{of.gain:+.3f} ({low} to {high}), better with probability {of.sure:.2f}"
