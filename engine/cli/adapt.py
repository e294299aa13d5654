"""`adapt`: an adapter learned from labelled embeddings, and judged on classes that were held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.console import (
    complain,
    need_distinct,
    need_ending,
    need_outputs,
    print_json,
    print_table,
    tell_noise,
    tell_unused,
)
from engine.config import Settings
from engine.errors import InputError, counted

if TYPE_CHECKING:
    from engine.cli.spaces import AdaptOptions
    from engine.learning.adapt import Adapter, AdapterConfig
    from engine.learning.judge import Judgement
    from engine.learning.labelled import LabelledSet
    from engine.learning.training import Plan


@dataclass(frozen=True, slots=True)
class _Candidate:
    plan: Plan
    adapter: Adapter
    margins: tuple[float, float] | None
    chosen_by: Judgement


def adapt(
    files: Sequence[Path], out: Path, wish: AdaptOptions, plan: Plan, settings: Settings, as_json: bool
) -> None:
    """Train candidates, choose one, print its figures, and write it unless it makes the space worse."""
    from engine.learning.adapt import AdapterConfig, adapted
    from engine.learning.judge import best, drawbacks, joined, judge, split
    from engine.learning.labelled import read_labelled

    need_distinct(files)
    models = [each for each in (settings.model.path, settings.model.adapter) if each]
    need_outputs([out], [*files, *models])
    need_ending(out, ".safetensors")
    sets = [read_labelled(file) for file in files]
    for file, each in zip(files, sets, strict=True):
        tell_unused(file, each.left_out, each.superseded)
        tell_noise(file, each.names, each.classes)
    labelled = joined(sets, [str(file) for file in files])
    training, choosing, reporting = split(labelled, wish.held_out, plan.seed)
    complain(
        f"{counted(len(training.names), 'class', 'classes')} to train on, "
        f"{len(choosing.names):,} to choose on, {len(reporting.names):,} to report on"
    )
    shape = AdapterConfig(wish.kind, wish.dim)
    found = [_train(each, shape, training, choosing, settings) for each in _plans(wish, plan)]
    taken = found[best(judge(choosing, settings), [each.chosen_by for each in found])]
    before, after = judge(reporting, settings), judge(adapted(taken.adapter, reporting), settings)
    worse = drawbacks(before, after)
    if not worse or wish.keep:
        taken.adapter.save(out)
    _report(taken, before, after, worse, as_json)
    if worse and not wish.keep:
        raise InputError(
            f"{out} is not written: on held-out classes {' and '.join(worse)}. "
            "Try another --loss, --kind or --steps; --keep writes it nevertheless."
        )
    if worse:
        complain(f"shoal: {out} is written as --keep asks, but on held-out classes {' and '.join(worse)}.")
    if not as_json:
        print(f"{out}: SHA-256 {taken.adapter.sha256[:16]}...")


def _plans(wish: AdaptOptions, plan: Plan) -> list[Plan]:
    """Return the plans to try: losses, each with the margins of the calibration range and fixed ones."""
    from engine.learning.losses import DEFAULTS, FIXED_MARGINS, Margins

    plans = [replace(plan, loss=name) for name in ([wish.loss] if wish.loss else DEFAULTS)]
    if not plan.tcm or plan.margins:
        return plans
    tried: list[Margins | None] = [None, FIXED_MARGINS]
    if wish.search:
        tried += [Margins(0.5, 0.1), Margins(0.7, 0.3), Margins(0.9, 0.4), Margins(0.95, 0.6)]
    return [replace(each, margins=margins) for each in plans for margins in tried]


def _train(
    plan: Plan, shape: AdapterConfig, training: LabelledSet, choosing: LabelledSet, settings: Settings
) -> _Candidate:
    from engine.cli.spaces import progress_bar
    from engine.learning.adapt import adapted, train_adapter
    from engine.learning.judge import judge

    about = {"loss": plan.loss, "tcm": plan.tcm, "steps": plan.steps, "seed": plan.seed, "kind": shape.kind}
    with progress_bar(plan.loss) as advance:
        adapter, margins = train_adapter(training, shape, plan, about, lambda share, loss: advance(share))
    judged = judge(adapted(adapter, choosing), settings)
    ends = (margins.positive, margins.negative) if margins else None
    shown = f", margins {ends[0]:.2f} and {ends[1]:.2f}" if ends else ""
    complain(f"{plan.loss}{shown}: OPIS {judged.opis:.2e}, R@1 {judged.recall_at_1:.4f}, Fb {judged.Fb:.4f}")
    return _Candidate(plan, adapter, ends, judged)


def _report(taken: _Candidate, before: Judgement, after: Judgement, worse: list[str], as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {
            "loss": taken.plan.loss,
            "margins": taken.margins,
            "kind": taken.adapter.kind,
            "dim": taken.adapter.dim_out,
            "sha256": taken.adapter.sha256,
            "before": asdict(before),
            "after": asdict(after),
            "recommended": not worse,
            "drawbacks": worse,
        }
        print_json(document)
        return
    names = {"opis": "OPIS", "opis_worst": "10%-OPIS", "recall_at_1": "recall at 1"}
    rows = [
        (names.get(key, key), *(f"{value:.2e}" if "opis" in key else f"{value:.4f}" for value in (old, new)))
        for (key, old), new in zip(asdict(before).items(), asdict(after).values(), strict=True)
    ]
    print_table(
        f"{taken.plan.loss}, {taken.adapter.kind}, {taken.adapter.dim_out} components; on other classes:",
        {"": "left", "before": "right", "after": "right"},
        rows,
    )
