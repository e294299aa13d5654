"""Both networks fine-tuned to a space: whole classes, held-out ones untold, an adapter, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from connectors.files.labelled import read_labelled
from engine.collection.build import load_adapter, load_model, store_config
from engine.config import ModelSettings, Settings
from engine.errors import InputError
from engine.finetuning.space import (
    SpacePlan,
    SpaceTrainer,
    View,
    held_out_classes,
    tune_to_space,
    views_of,
)
from engine.model.adapter import Adapter
from engine.model.linkage import LinkageModel
from engine.training import training_report
from engine.training.datasets import Collection, SpaceFiles, distinct, shared_classes, whole_classes
from engine.training.discriminant import discriminant
from engine.training.optimization import OptimizerPlan
from engine.training.training_run import Checkpoint, Progress
from engine.vectors import as_float, quantize

pytestmark = pytest.mark.usefixtures("one_thread")
START = LinkageModel.load()
QUICK = SpacePlan(steps=12, first=2, fresh_every=4, checks=2, most_items=400)


def spread(seed: int, classes: int = 24, dim: int = 24, misleading: float = 1.5) -> Collection:
    """Classes of 14 items that differ most along six directions which tell nothing of their class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 14)
    emb = rng.normal(size=(classes, dim))[labels] + 0.3 * rng.normal(size=(len(labels), dim))
    emb[:, :6] = misleading * rng.normal(size=(len(labels), 6))
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    return Collection("spread", unit.astype(np.float32), labels)


def file_of(collection: Collection, path: Path) -> Path:
    np.savez(path, emb=collection.emb, labels=collection.labels)
    return path


def contrast(emb: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean similarity within classes against that across, in deviations of the latter."""
    similar = emb @ emb.T
    same = labels[:, None] == labels
    np.fill_diagonal(same, False)
    other = labels[:, None] != labels
    return float((similar[same].mean() - similar[other].mean()) / similar[other].std())


@pytest.mark.parametrize("seed", range(3))
def test_a_discriminant_map_brings_classes_together_that_it_has_not_seen(seed: int) -> None:
    source = spread(seed, classes=48)
    seen = source.labels < 24
    found = discriminant(source.emb[seen], source.labels[seen], {})
    others, labels = source.emb[~seen], source.labels[~seen]
    mapped = as_float(found.apply(quantize(others)[0]))
    assert contrast(mapped, labels) > contrast(others, labels) + 0.5
    assert found.sha256 == discriminant(source.emb[seen], source.labels[seen], {}).sha256


def test_a_view_shows_labels_only_of_classes_that_its_map_was_not_learned_on() -> None:
    source = spread(0)
    held = held_out_classes(source.labels, QUICK)
    learned = np.setdiff1d(source.labels, held)
    views, adapter = views_of(source, learned, QUICK, True)
    assert adapter is not None
    assert sorted(np.concatenate([view.visible for view in views])) == learned.tolist()
    for view in views:
        taught = np.setdiff1d(learned, view.visible)
        rows = np.isin(source.labels, taught)
        own = discriminant(source.emb[rows], source.labels[rows], {})
        assert np.array_equal(view.emb, as_float(own.apply(quantize(source.emb)[0])))
    [plain], nothing = views_of(source, learned, QUICK, False)
    assert nothing is None
    assert np.array_equal(plain.visible, learned)


def test_training_does_not_depend_on_hidden_labels() -> None:
    """Other labels of the held-out classes, of the same sizes and among themselves, change no bit."""
    source = spread(1)
    held = held_out_classes(source.labels, QUICK)
    learned = np.setdiff1d(source.labels, held)
    rows = np.flatnonzero(np.isin(source.labels, held))
    shuffled = source.labels.copy()
    shuffled[rows] = np.random.default_rng(0).permutation(shuffled[rows])
    plan = replace(QUICK, share=(1.0, 1.0), most_items=10**6)  # all classes in each draw
    found = []
    for labels in (source.labels, shuffled):
        trainer = SpaceTrainer([View(source.emb, labels, learned)], START, plan)
        for step in range(12):
            trainer.step(step / 12)
        found.append(trainer.model().sha256)
    assert found[0] == found[1] != START.sha256


def test_the_model_and_its_adapter_are_written(tmp_path: Path) -> None:
    file, out, adapter = file_of(spread(0), tmp_path / "a.npz"), tmp_path / "m.safetensors", tmp_path / "a"
    told: list[Progress] = []
    model = tune_to_space(SpaceFiles([file], (), adapter), out, START, QUICK, told.append)
    about = LinkageModel.load(out).card.about
    written = Adapter.load(adapter)
    assert (about["adapter"], written.about["classes"]) == (written.sha256, 24)  # the held-out ones, too
    assert model.sha256 != START.sha256
    assert set(told[-1].held_out) == {f"held-out classes at tau {START.tau:g}"}
    assert about["started_from"] == START.sha256
    behind = Settings(model=ModelSettings(path=out))
    with pytest.raises(InputError, match="trained behind the adapter"):
        store_config(behind, load_model(behind), load_adapter(behind))
    beside = Settings(model=ModelSettings(path=out, adapter=adapter))
    wanted = store_config(beside, load_model(beside), load_adapter(beside))
    assert (wanted["adapter"], wanted["dim"]) == (about["adapter"], 24)


@pytest.mark.parametrize(("rate", "misleading"), [(0.001, 1.5), (30.0, 0.1)])
def test_the_start_stays_where_training_makes_it_no_better(
    rate: float, misleading: float, tmp_path: Path
) -> None:
    plan = replace(QUICK, optimizer=OptimizerPlan(rate, 0.01, 0.5, 1))
    file = file_of(spread(2, misleading=misleading), tmp_path / "a.npz")
    adapter = tmp_path / "a.safetensors"
    model = tune_to_space(SpaceFiles([file], (), adapter), tmp_path / "m.safetensors", START, plan)
    about = model.card.about
    assert about["kept_start"] == (not adapter.exists()) == (about["adapter"] is None)
    assert ("leave out [model] adapter" in about["said"]) == about["kept_start"]
    assert about["verdict"]["before"] == about["history"][0][1]
    assert about["kept_start"] == (about["verdict"]["sure"] < 0.8)
    assert (model.sha256 == START.sha256) == about["kept_start"]
    assert about["kept_start"] == (rate > 1)
    training_report.write(tmp_path / "m.safetensors", model, [], [])
    first, second = _rows((tmp_path / "m.md").read_text())[:2]
    written, other = ("before", "after") if about["kept_start"] else ("after", "before")
    assert first == f"{about['verdict'][written]:.3f}"
    assert second == f"{about['verdict'][other]:.3f}"
    tried = f"{about['verdict']['after']:.3f} after at tau {about['tuned_tau']:g}"
    assert tried in about["said"]


def _rows(report: str) -> list[str]:
    """The figures of the table of what is held out."""
    table = report.split("## Held out")[1].split("## Curve")[0]
    return [line.split("|")[-2].strip() for line in table.splitlines() if line.startswith("|")][2:]


def test_a_figure_at_another_tau_says_so(tmp_path: Path) -> None:
    """The step is chosen at the start's tau; the verdict is of the best one."""
    about = {
        "verdict": {"before": 0.68, "after": 0.646},
        "kept_start": True,
        "tuned_tau": 0.36,
        "checkpoint_chosen_on": {"held-out classes at tau 0.46": 0.615},
    }
    model = START.with_card(replace(START.card, about=about))
    training_report.write(tmp_path / "m.safetensors", model, [], [])
    report = (tmp_path / "m.md").read_text()
    assert _rows(report) == ["0.680", "0.646", "0.615"]
    assert "| the start, which is written unchanged | 0.680 |" in report
    assert "| the fine-tuned model at tau 0.36, which is not written | 0.646 |" in report
    assert "on held-out classes at tau 0.46 | 0.615 |" in report


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    file, at = file_of(spread(3), tmp_path / "a.npz"), tmp_path / "c"
    plan = replace(QUICK, save_every=0.0)
    files = SpaceFiles([file])
    whole = tune_to_space(files, tmp_path / "whole.safetensors", START, plan)

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step >= 7:
            raise Stop

    with pytest.raises(Stop):
        tune_to_space(files, tmp_path / "m.safetensors", START, plan, stop, Checkpoint(at))
    resumed = tune_to_space(
        files, tmp_path / "m.safetensors", START, plan, checkpoint=Checkpoint(at, resume=True)
    )
    assert resumed.sha256 == whole.sha256
    assert not at.exists()


def test_a_named_file_judges(tmp_path: Path) -> None:
    a, b = (file_of(spread(seed), tmp_path / f"{seed}.npz") for seed in (4, 5))
    judge = file_of(spread(6), tmp_path / "judge.npz")
    told: list[Progress] = []
    files = SpaceFiles([a, b], [judge])
    model = tune_to_space(files, tmp_path / "m.safetensors", START, QUICK, told.append)
    assert set(told[-1].held_out) == {f"held-out classes at tau {START.tau:g}"}
    assert model.card.about["held_out"] == ["judge"]
    assert model.card.about["trained_on"] == ["4", "5"]


def test_the_same_label_in_two_files_is_one_class(tmp_path: Path) -> None:
    whole = spread(7)
    halves = [replace(whole, emb=whole.emb[at::2], labels=whole.labels[at::2]) for at in (0, 1)]
    parts = [file_of(half, tmp_path / f"{at}.npz") for at, half in enumerate(halves)]
    few = file_of(replace(whole, emb=whole.emb[:5], labels=np.full(5, 99)), tmp_path / "few.npz")
    one, two, other = shared_classes([read_labelled(path) for path in (*parts, few)])
    joined = np.stack([one, two], axis=1).ravel()
    assert len(set(zip(joined.tolist(), whole.labels.tolist(), strict=True))) == len(set(joined)) == 24
    assert other.tolist() == [24] * 5


@pytest.mark.parametrize(
    ("training", "judge", "said"),
    [
        ([(0, 5, 24)], None, "5 classes of two distinct items or more"),
        ([(0, 9, 24), (1, 9, 16)], None, r"the files have \[16, 24\] components"),
        ([(0, 9, 24)], (1, 9, 16), "they have 16 and 24 components"),
    ],
)
def test_what_cannot_be_used_is_said(
    training: list[tuple[int, int, int]], judge: tuple[int, int, int] | None, said: str, tmp_path: Path
) -> None:
    def file(at: int, of: tuple[int, int, int]) -> Path:
        seed, classes, dim = of
        return file_of(spread(seed, classes=classes, dim=dim), tmp_path / f"{at}.npz")

    files = SpaceFiles([file(at, of) for at, of in enumerate(training)], [file(9, judge)] if judge else [])
    with pytest.raises(InputError, match=said):
        tune_to_space(files, tmp_path / "m.safetensors", START, QUICK)


@pytest.mark.parametrize("seed", range(20))
def test_whole_classes_are_drawn_with_all_their_items(seed: int) -> None:
    rng, source = np.random.default_rng(seed), distinct(spread(seed))
    most = int(rng.integers(30, 400))
    part = whole_classes(source, rng, (0.6, 1.0), most)
    for label, count in zip(*np.unique(part.labels, return_counts=True), strict=True):
        assert count == (source.labels == label).sum(), f"{seed=}"
    assert len(part.emb) <= max(most, 28), f"{seed=}"
