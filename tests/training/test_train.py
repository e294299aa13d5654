"""Training: collections, roll-outs with soft targets, and a run from files to a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import InputError
from engine.evaluation.bulk import (
    BulkClustering,
    hierarchy,
    measure_epoch,
    partitions,
    recluster_base,
    recluster_upper_levels,
)
from engine.model.linkage import LinkageModel
from engine.training import topics
from engine.training.datasets import (
    Collection,
    augmented,
    distinct,
    generated,
    large_part,
    read_labelled,
    subset,
)
from engine.training.learner import LearnerPlan, consistency_loss, training_loss
from engine.training.plan import InitialModels, Plan
from engine.training.rollout import Oracle, joined, training_graphs, version_pairs
from engine.training.train import evaluate, train
from engine.training.trainer import Trainer
from engine.training.training_run import Checkpoint, Progress
from engine.vectors import quantize
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = LearnerPlan(rate=0.03, edges=2000)
SMALL = Plan(minutes=0.02, hidden=16, learner=replace(QUICK, rate=0.003), most_items=400, first=12)


def clusters(seed: int, n: int = 300, classes: int = 12) -> Collection:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    emb = rng.normal(size=(classes, 16))[labels] + 0.4 * rng.normal(size=(n, 16))
    return Collection("clusters", emb.astype(np.float32), labels)


def file_of(collection: Collection, path: Path, **more: np.ndarray) -> Path:
    np.savez(path, emb=collection.emb.astype(np.float16), labels=collection.labels, **more)
    return path


@pytest.mark.parametrize("seed", range(40))
def test_generated_collections_are_usable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    collection = generated(rng, int(rng.integers(100, 1200)))
    part = augmented(subset(collection, rng, 400), rng)
    for each in (collection, part, large_part(collection, rng, 100, 900)):
        assert np.isfinite(each.emb).all(), f"{seed=}"
        assert len(each.emb) == len(each.labels) > 0, f"{seed=}"
    assert len(part.emb) <= 400


@pytest.mark.parametrize("seed", range(40))
def test_collections_of_few_topics_are_usable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = topics.drawn(rng, int(rng.integers(16, 1200)))
    for each in (drawn, topics.with_near_copies(rng, clusters(seed)), topics.in_cone(rng, clusters(seed))):
        assert np.isfinite(each.emb).all(), f"{seed=}"
        assert len(each.emb) == len(each.labels) > 0, f"{seed=}"
        assert len(np.unique(quantize(distinct(each).emb)[0], axis=0)) == len(distinct(each).emb)


@pytest.mark.parametrize("seed", range(8))
def test_a_cone_makes_strangers_similar(seed: int) -> None:
    drawn = Collection("random_directions", *topics.random_directions(np.random.default_rng(seed), 200))
    epoch = measure_epoch(topics.in_cone(np.random.default_rng(seed), drawn).emb)
    assert 0.08 < epoch.mean < 0.95
    emb, labels = topics.cone(np.random.default_rng(seed), 400)
    assert len(np.unique(labels)) > 30
    assert 0.3 < measure_epoch(emb).mean < 0.97


@pytest.mark.parametrize("seed", range(3))
def test_targets_are_the_chance_that_a_pair_across_is_of_one_class(seed: int) -> None:
    collection = clusters(seed)
    epoch = measure_epoch(collection.emb)
    oracle = Oracle(collection.labels, np.random.default_rng(seed))
    built = hierarchy(collection.emb, oracle, 0.5, 2, epoch)
    base, upper = training_graphs(built, collection.labels, epoch)
    same = collection.labels[base.heads] == collection.labels[base.tails]
    assert (base.target == same).all()
    peaks = partitions(built)[0]
    node_of_item = built.levels[0].above[peaks]
    for t in range(len(upper.target)):
        left = collection.labels[node_of_item == upper.heads[t]]
        right = collection.labels[node_of_item == upper.tails[t]]
        wanted = np.mean([a == b for a in left for b in right])
        assert upper.target[t] == pytest.approx(wanted, abs=1e-6), f"{seed=} {t=}"
    assert 0.0 < upper.target.mean() < 1.0


def test_copies_are_one_node_and_targets_count_them() -> None:
    """A copy with another label makes its node's edges less certain; partitions are of items."""
    collection = clusters(1)
    emb = np.concatenate([collection.emb, collection.emb[:7], collection.emb[:7]])
    labels = np.concatenate([collection.labels, collection.labels[:7], np.full(7, 10**6)])
    built = hierarchy(emb, random_model(4), 0.4, 2)
    assert built.levels[0].nodes.live == len(collection.emb)
    for part in partitions(built):
        assert len(part) == len(emb)
        assert np.array_equal(part[-7:], part[:7])
    [base, *_] = training_graphs(built, labels, measure_epoch(emb))
    assert base.size[:8].tolist() == [3] * 7 + [1]
    for edge in np.flatnonzero(base.heads == 0).tolist():
        assert base.target[edge] == pytest.approx(
            np.mean(
                [
                    a == b
                    for a in labels[[0, len(collection.emb), -7]]
                    for b in labels_of(built, labels, base.tails[edge])
                ]
            )
        )
    assert measure_epoch(emb) == measure_epoch(collection.emb)


def labels_of(built: BulkClustering, labels: np.ndarray, node: int) -> np.ndarray:
    return labels[built.node_of == node]


def test_partitions_are_nested() -> None:
    built = hierarchy(clusters(1).emb, random_model(4), 0.4, 3)
    fine, *coarser = partitions(built)
    for coarse in coarser:
        assert len(set(zip(fine, coarse, strict=True))) == len(set(fine))


def test_joined_graphs_have_the_loss_of_each() -> None:
    trainer = Trainer([[clusters(2)]], replace(SMALL, generated_share=0.0))
    a, b = trainer.base.pool[0], trainer.base.pool[3]
    both = joined([a, b])
    assert (both.heads[len(a.e) :] == b.heads + len(a.x)).all()
    with torch.no_grad():
        trainer.base.net.eval()
        alone = [float(training_loss(trainer.base.net, [part])) for part in (a, b)]
        assert min(alone) - 0.2 < float(training_loss(trainer.base.net, [a, b])) < max(alone) + 0.2


def test_training_learns() -> None:
    """Some steps on one kind of collection: it clusters another of the kind."""
    trainer = Trainer(
        [[clusters(seed)] for seed in range(3)],
        replace(SMALL, generated_share=0.0, learner=QUICK, upper_rate=QUICK.rate),
    )
    before = evaluate(trainer.model(), clusters(77))["Fb"]
    for _ in range(80):
        trainer.step(0.1)
    after = evaluate(trainer.model(), clusters(77))["Fb"]
    assert after > max(0.7, before + 0.1), f"{before=} {after=}"


def test_a_student_comes_nearer_to_its_teacher() -> None:
    """It learns no labels, and is nearer than before, and nearer than one that learns labels alone."""
    teacher, collection = random_model(1), clusters(77)
    built = hierarchy(collection.emb, teacher, 0.5, 1)
    graph = training_graphs(built, collection.labels, measure_epoch(collection.emb))[0]
    seen = graph.x, graph.e, graph.degrees, graph.tails

    def distances(imitation: float, initial: InitialModels) -> list[float]:
        learner = replace(QUICK, few=0.0)
        plan = replace(SMALL, generated_share=0.0, learner=learner, imitation=imitation, upper_share=0.0)
        trainer = Trainer([[clusters(seed)] for seed in range(3)], plan, initial)
        found = []
        for steps in (0, 80):
            for _ in range(steps):
                trainer.step(0.1)
            p = [model.base.probabilities(*seen) for model in (trainer.model(), teacher)]
            found.append(float(np.abs(p[0] - p[1]).mean()))
        return found

    before, after = distances(1.0, InitialModels(teacher=teacher))
    _, other = distances(0.0, InitialModels())
    assert after < min(0.85 * before, 0.7 * other), f"{before=} {after=} {other=}"


def test_the_upper_network_is_trained_anew_above_a_given_level_0() -> None:
    base = random_model(2)
    initial = InitialModels(base=base)
    trainer = Trainer([[clusters(0)]], SMALL.after(initial), initial)
    before = trainer.model().upper.tensors()["head_inner.weight"].clone()
    for _ in range(3):
        trainer.step(0.5)
    model = trainer.model()
    for own, other in zip(model.base.net.parameters(), base.base.net.parameters(), strict=True):
        assert (own == other).all()
    assert model.upper.tensors()["head_inner.weight"].ne(before).any()
    assert trainer.grown
    with pytest.raises(InputError, match="k = 10"):
        InitialModels(base=random_model(2, k=5))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("above", [False, True])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, above: bool, long: bool) -> None:
    """Also of the upper network alone; what has been drawn, grown and averaged is all restored."""
    whole, part = (
        (70, 50) if long else (34, 24)
    )  # new collections, pairs of versions and a check come before and after
    file, out = file_of(clusters(9, 250, 20), tmp_path / "a.npz"), tmp_path / "m.safetensors"
    plan = replace(
        SMALL, steps=whole, save_every=0.0, checks=3, oracle_share=0.2, first=6, generated_share=0.0
    )
    initial = InitialModels(base=random_model(2)) if above else InitialModels()
    wanted = train([file], out, plan, [file], initial=initial)
    kept = tmp_path / "m.checkpoint"

    def stop(progress: Progress) -> None:
        if progress.step >= part:
            raise Stopped

    with pytest.raises(Stopped):
        train([file], out, plan, [file], stop, initial, Checkpoint(kept))
    steps: list[int] = []
    again = train(
        [file], out, plan, [file], lambda p: steps.append(p.step), initial, Checkpoint(kept, resume=True)
    )
    assert min(steps) >= part - 1  # what was done is not done again
    assert (again.sha256, again.card) == (wanted.sha256, wanted.card)
    assert not kept.exists()


def test_a_training_interrupted_early_can_be_resumed(tmp_path: Path) -> None:
    file, kept = file_of(clusters(9, 100, 10), tmp_path / "a.npz"), tmp_path / "m.checkpoint"
    plan = replace(SMALL, steps=4, save_every=3600.0, checks=2, first=2, generated_share=0.0)

    def stop(progress: Progress) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train([file], tmp_path / "m.safetensors", plan, [file], stop, checkpoint=Checkpoint(kept))
    train([file], tmp_path / "m.safetensors", plan, [file], checkpoint=Checkpoint(kept, resume=True))
    assert not kept.exists()


def test_version_pairs_are_the_edges_of_both_versions() -> None:
    collection, model = clusters(3), random_model(4)
    epoch = measure_epoch(collection.emb)
    versions = [hierarchy(emb, model, 0.4, 3, epoch) for emb in (collection.emb[:280], collection.emb)]
    found = version_pairs(*versions, collection.labels, epoch)
    assert found
    for depth, pair in enumerate(found, 1):
        vectors = [
            [v.levels[depth].nodes.vectors[ends] for ends in (graph.heads[at], graph.tails[at])]
            for v, graph, at in zip(
                versions, (pair.before, pair.after), (pair.edges_before, pair.edges_after), strict=True
            )
        ]
        assert np.array_equal(*vectors)
        assert 0 < len(pair.edges_before) <= len(pair.before.e)
    same = version_pairs(versions[1], versions[1], collection.labels, epoch)[0]
    assert np.array_equal(same.edges_before, np.arange(len(same.before.e)))
    initial = InitialModels(base=random_model(1))
    trainer = Trainer([[clusters(0)]], SMALL.after(initial), initial)
    net = trainer.upper.net.eval()
    trainer.upper.keep_pairs([same, found[0]])
    with torch.no_grad():
        steady, moved = (float(consistency_loss(net, pair)) for pair in trainer.upper.version_pairs[-2:])
    assert steady == 0.0 < moved


def test_training_makes_successive_versions_alike() -> None:
    plan = replace(SMALL, generated_share=0.0, consistency=20.0, learner=QUICK, upper_rate=QUICK.rate)
    initial = InitialModels(base=random_model(2))
    trainer = Trainer([[clusters(seed)] for seed in range(3)], plan.after(initial), initial)
    trainer.step(0.5)
    pairs = list(trainer.upper.version_pairs)

    def moved() -> float:
        with torch.no_grad():
            return float(np.mean([float(consistency_loss(trainer.upper.net.eval(), pair)) for pair in pairs]))

    before = moved()
    for _ in range(60):
        trainer.step(0.5)
    assert moved() < 0.5 * before


def test_levels_are_grown_anew_as_from_scratch() -> None:
    collection, model = clusters(3), random_model(4)
    epoch = measure_epoch(collection.emb)
    built = hierarchy(collection.emb, model, 0.4, 1, epoch)
    again = recluster_upper_levels(built, model, 0.4, 3, epoch)
    whole = hierarchy(collection.emb, model, 0.4, 3, epoch)
    for one, other in zip(partitions(again), partitions(whole), strict=True):
        assert np.array_equal(one, other)
    upper = training_graphs(again, collection.labels, epoch, lowest=1)
    for one, other in zip(upper, training_graphs(whole, collection.labels, epoch)[1:], strict=True):
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.e, other.e)
        assert one.level == other.level > 0


def test_another_base_tau_gives_the_clusters_from_scratch() -> None:
    collection, model = clusters(3), random_model(4)
    epoch = measure_epoch(collection.emb)
    built = hierarchy(collection.emb, model, 0.4, 3, epoch, base_tau=0.3)
    for base_tau in (0.6, 0.5, 0.4):
        built = recluster_base(built, base_tau)
        again = recluster_upper_levels(built, model, 0.5, 3, epoch)
        whole = hierarchy(collection.emb, model, 0.5, 3, epoch, base_tau=base_tau)
        for one, other in zip(partitions(again), partitions(whole), strict=True):
            assert np.array_equal(one, other)


def test_training_is_seeded() -> None:
    runs = []
    for _ in range(2):
        trainer = Trainer([[clusters(0)]], replace(SMALL, seed=5))
        runs.append(([trainer.step(0.5) for _ in range(3)], trainer.model().sha256))
    assert runs[0] == runs[1]


def test_files_in_and_a_model_out(tmp_path: Path) -> None:
    text = np.array([f"item {label} of {label * 7}" for label in clusters(0).labels])
    files = [file_of(clusters(0), tmp_path / "a.npz", text=text), file_of(clusters(1), tmp_path / "b.npz")]
    told: list[Progress] = []
    model = train(
        files, tmp_path / "m.safetensors", SMALL, [file_of(clusters(2), tmp_path / "c.npz")], told.append
    )
    loaded = LinkageModel.load(tmp_path / "m.safetensors")
    assert loaded.sha256 == model.sha256
    assert loaded.card.about["trained_on"] == ["a", "b", "generated mixtures"]
    written = evaluate(loaded, read_labelled(tmp_path / "c.npz"))["Fb"]
    assert loaded.card.about["checkpoint_chosen_on"] == {"c": pytest.approx(written)}
    assert any(progress.held_out for progress in told)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK no zip")
    np.savez(tmp_path / "short.npz", emb=np.ones((3, 4)), labels=np.ones(2, int))
    for path in (broken, tmp_path / "short.npz", tmp_path / "missing.npz"):
        with pytest.raises(InputError, match=path.name):
            read_labelled(path)
    with pytest.raises(InputError, match="at least one"):
        train([], tmp_path / "m.safetensors")
    one = clusters(0)
    alike = [file_of(replace(one, labels=one.labels * 0), tmp_path / f"{name}.npz") for name in "ab"]
    with pytest.raises(InputError, match="a, b: one class only"):
        train(alike, tmp_path / "m.safetensors", SMALL)
    alone = [file_of(replace(one, labels=np.arange(300)), tmp_path / f"{name}.npz") for name in "de"]
    with pytest.raises(InputError, match="d, e: no class has two distinct items"):
        train(alone, tmp_path / "m.safetensors", SMALL)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_short_training_begins_with_fewer_collections() -> None:
    assert [replace(Plan(), steps=steps).drawn_first for steps in (None, 2, 20, 9600)] == [60, 8, 20, 60]
    assert replace(SMALL, steps=2, first=3).drawn_first == 3
