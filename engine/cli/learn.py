"""`train`, `model import`: commands of minutes, which report on standard error as they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.console import (
    Interrupted,
    complain,
    need_companions,
    need_distinct,
    need_ending,
    need_outputs,
    tell_noise,
    tell_unused,
)
from engine.errors import InputError, counted

if TYPE_CHECKING:
    from engine.cli.models import TrainOptions
    from engine.training.training_run import Progress


KINDS = ("universal", "lander")
REPLACED = " (it replaced the model that was there)"
BESIDE = (".json", ".md", ".png")  # of the weights


def train(files: Sequence[Path], out: Path, request: TrainOptions) -> None:
    """Train and write the model."""
    _need_fitting(request)
    _need_files(files, out, request)
    from engine.training import training_report

    roles = [(file, "training") for file in files] + [(file, "choosing") for file in request.choose or ()]
    roles += [(request.among, "among")] if request.among else []
    data = [_looked_at(file, request, role) for file, role in roles]
    curve: list[Progress] = []

    def report(progress: Progress) -> None:
        curve.append(progress)
        judged = ", ".join(f"{name} {score:.3f}" for name, score in progress.held_out.items())
        left = progress.seconds / progress.share * (1.0 - progress.share) if progress.share else 0.0
        complain(
            f"{100 * min(progress.share, 1):3.0f}%  {progress.seconds:,.0f} s, {left:,.0f} s left"
            f"  step {progress.step:,}  loss {progress.loss:.4f}" + (f"  Fb: {judged}" if judged else "")
        )

    checkpoint, replaced = _beside(out, ".checkpoint"), out.is_file()
    before = _written_at(checkpoint)
    try:
        model = (_lander if request.kind == "lander" else _universal)(files, out, request, report)
    except Interrupted as stopped:
        kept = request.resume or _written_at(checkpoint) != before
        stopped.sentence += (
            f" The same command with --resume goes on from {checkpoint}."
            if kept
            else " No checkpoint was due yet: nothing is kept."
        )
        raise
    try:
        training_report.write(out, model, curve, data)
    except Interrupted as stopped:
        stopped.sentence += f" {out} is written and complete; its report is missing."
        raise
    levels = counted(model.max_levels, "level")
    print(
        f"{out}: k {model.k}, tau {model.tau}, {levels}, SHA-256 {model.sha256[:16]}..." + REPLACED * replaced
    )
    print(f"The report is {_beside(out, '.md')}.")


def _need_fitting(request: TrainOptions) -> None:
    """Raise InputError where options do not go together."""
    if request.kind not in KINDS:
        raise InputError(f"the kind of a model is one of {', '.join(KINDS)}, not {request.kind!r}")
    if request.steps and request.minutes:
        raise InputError("--steps and --minutes both say how long to train: name one")
    for is_wrong, sentence in _of_lander(request) if request.kind == "lander" else _of_universal(request):
        if is_wrong:
            raise InputError(sentence)
    if request.among and not _is_tuning(request):
        raise InputError("--among is for fine-tuning on a few classes: with --start, without --space")
    if request.space and not (request.kind == "universal" and request.start):
        raise InputError("--space continues from a universal model: name that with --start")
    if request.adapter and not (request.space or (request.kind == "lander" and not request.start)):
        raise InputError("--adapter is for a new lander, or for learning a space with --start and --space")


def _of_lander(request: TrainOptions) -> list[tuple[bool, str]]:
    """Return what is wrong with the options of a lander, as checks with their messages."""
    networks = request.teacher or request.base
    kept = request.variant or request.hidden
    begins = request.begin is not None and request.start is not None
    is_metric = request.start is None and request.begin != "random"
    return [
        (
            bool(networks),
            "a lander has one network and learns from labels: --base and --teacher are universal's",
        ),
        (begins, "--begin says how a lander without --start begins: name --kind lander alone with it"),
        (
            is_metric and _is_weighted(request),
            "a metric has a loss of its own: name --begin random, or --start, with --focal and --balance",
        ),
        (
            bool(request.start and kept),
            "a lander that continues from --start keeps its shape: name no --variant or --hidden with it",
        ),
    ]


def _of_universal(request: TrainOptions) -> list[tuple[bool, str]]:
    """Return what is wrong with the options of a universal model, as checks with their messages."""
    begins, width = request.begin is not None, bool(request.base and request.hidden)
    return [
        (
            bool(request.base and request.teacher),
            "--teacher teaches level 0, which --base keeps as it is: name one of them",
        ),
        (request.variant is not None, "--variant is of a lander: name --kind lander with it"),
        (_is_weighted(request), "--focal and --balance are of a lander: name --kind lander with them"),
        (begins, "--begin says how a lander without --start begins: name --kind lander alone with it"),
        (width and not request.start, "a model above --base is as wide as that: name no --hidden with it"),
    ]


def _is_weighted(request: TrainOptions) -> bool:
    """Whether options weigh the pairs of a lander's loss."""
    return request.focal is not None or request.balance


def _need_files(files: Sequence[Path], out: Path, request: TrainOptions) -> None:
    """Raise InputError where a file cannot be written, or would replace one of the user's."""
    among = [request.among] if request.among else []
    need_distinct([*files, *(request.choose or ()), *among])
    companions = [_beside(out, ending) for ending in BESIDE]
    checkpoint = _beside(out, ".checkpoint")
    models = [each for each in (request.start, request.base, request.teacher) if each]
    read = [*files, *(request.choose or ()), *among, *models]
    written = [out, *companions, checkpoint, *([request.adapter] if request.adapter else [])]
    need_outputs(written, [*read, *(_beside(model, ".json") for model in models)])
    for each in (out, request.adapter):
        if each:
            need_ending(each, ".safetensors")
    if not checkpoint.exists():
        need_companions(out, companions)
        if request.resume:
            from engine.training import checkpoint as checkpoints

            raise checkpoints.missing(checkpoint)
    elif not request.resume:
        raise InputError(
            f"{checkpoint} is left by an interrupted training: --resume continues from it. Delete it to "
            "start over"
        )


def _beside(out: Path, ending: str) -> Path:
    return out.parent / (out.stem + ending)


def _written_at(path: Path) -> int:
    """Return when a file was written; 0: there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _looked_at(file: Path, request: TrainOptions, role: str) -> str:
    """Warn about implausible labels; return the file's row in the report. `role`: what it is used for."""
    from connectors.files.labelled import read_labelled
    from engine.training import datasets, training_report

    partly = _is_tuning(request)  # a record need not have a label
    found = read_labelled(file, partly)
    tell_unused(file, found.left_out, found.superseded)
    tell_noise(file, *found.classes())
    if not partly:
        for doubt in datasets.label_warnings(datasets.collection_of(file.stem, found)):
            complain(f"shoal: {doubt}")
    return training_report.row_of(file, role, found)


def _is_tuning(request: TrainOptions) -> bool:
    """Return whether the universal model is to be fine-tuned on a few classes."""
    return request.kind == "universal" and request.start is not None and not request.space


Report = Callable[["Progress"], None]


def _universal(files: Sequence[Path], out: Path, request: TrainOptions, report: Report) -> Any:
    from engine.training.plan import InitialModels, Plan
    from engine.training.train import read_model, train
    from engine.training.training_run import Checkpoint

    if request.start:
        return (_tuned_to_space if request.space else _finetuned)(files, out, request, report)
    initial = InitialModels(base=read_model(request.base), teacher=read_model(request.teacher))
    plan = Plan(
        minutes=request.minutes or Plan().minutes,
        steps=request.steps,
        seed=request.seed,
        hidden=request.hidden or Plan().hidden,
    )
    kept = Checkpoint(_beside(out, ".checkpoint"), request.resume)
    return train(files, out, plan, request.choose or (), report, initial, kept)


def _finetuned(files: Sequence[Path], out: Path, request: TrainOptions, report: Report) -> Any:
    from engine.finetuning.finetune import FinetuneData, FinetunePlan, finetune
    from engine.training.training_run import Checkpoint

    start = _start(request)
    plan = FinetunePlan(request.steps or FinetunePlan().steps, request.minutes, request.seed)
    kept = Checkpoint(_beside(out, ".checkpoint"), request.resume)
    model = finetune(FinetuneData(files, request.among, request.choose or ()), out, start, plan, report, kept)
    complain(f"shoal: {model.card.about['said']}")
    return model


def _tuned_to_space(files: Sequence[Path], out: Path, request: TrainOptions, report: Report) -> Any:
    from engine.finetuning.space import SpacePlan, tune_to_space
    from engine.training.datasets import SpaceFiles
    from engine.training.training_run import Checkpoint

    start = _start(request)
    plan = SpacePlan(request.steps or SpacePlan().steps, request.minutes, request.seed)
    kept = Checkpoint(_beside(out, ".checkpoint"), request.resume)
    named = SpaceFiles(files, request.choose or (), request.adapter)
    model = tune_to_space(named, out, start, plan, report, kept)
    complain(f"shoal: {model.card.about['said']}")
    return model


def _start(request: TrainOptions) -> Any:
    """Return the model that a fine-tuning starts from. Raises InputError with options of other trainings."""
    from engine.training.train import read_model

    if request.base or request.teacher or request.hidden:
        raise InputError(
            "fine-tuning goes on from --start alone: name no --base, --teacher or --hidden with it"
        )
    return read_model(request.start)


def _lander(files: Sequence[Path], out: Path, request: TrainOptions, report: Report) -> Any:
    from engine.training.datasets import SpaceFiles
    from engine.training.lander.plan import LanderPlan
    from engine.training.lander.train import read_model, train
    from engine.training.training_run import Checkpoint

    start = read_model(request.start)
    plan = LanderPlan(
        minutes=request.minutes,
        steps=request.steps,
        seed=request.seed,
        variant=request.variant or LanderPlan().variant,
        hidden=request.hidden or LanderPlan().hidden,
        begin=request.begin or LanderPlan().begin,
        focal=request.focal or 0.0,
        balance=request.balance,
    )
    kept = Checkpoint(_beside(out, ".checkpoint"), request.resume)
    named = SpaceFiles(files, request.choose or (), request.adapter)
    return train(named, out, plan, report, start, kept)


def import_weights(file: Path, out: Path, average: bool, k: int, tau: float, levels: int) -> None:
    """Write weights of the authors' code as a model."""
    from engine.training.lander import published

    card = _beside(out, ".json")
    need_outputs([out, card], [file])
    need_ending(out, ".safetensors")
    need_companions(out, [card])
    model, replaced = published.model_of(published.read(file), average, k, tau, levels), out.is_file()
    model.save(out)
    made = model.card
    print(
        f"{out}: {made.variant}, embeddings of {made.dim} components, hidden {made.hidden}, k {made.k}, "
        f"tau {made.tau}, SHA-256 {model.sha256[:16]}..." + REPLACED * replaced
    )
