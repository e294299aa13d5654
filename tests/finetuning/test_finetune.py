"""Fine-tuning on a few labelled classes: what labels tell, when the start stays, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import InputError
from engine.evaluation import scores
from engine.evaluation.bulk import partitions
from engine.evaluation.scores import f_of_classes
from engine.finetuning.collection import FinetuneCollection, labelled_level
from engine.finetuning.finetune import FinetuneData, FinetunePlan, finetune, read_collections, tuned
from engine.finetuning.folds import Fold, Folds, Prior, folds_of, verdict
from engine.finetuning.tuner import anchored, labelled_loss
from engine.model.linkage import LinkageModel
from engine.training.datasets import UNKNOWN, unit
from engine.training.training_run import Checkpoint, Progress
from tests.support.random_models import random_model

START = LinkageModel.load()
QUICK = FinetunePlan(steps=12, folds=3, checks=2)


def spread(seed: int, classes: int = 40, each: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Classes of several modes, which the start leaves in pieces."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    modes = rng.normal(size=(classes, 3, 24)) * 0.55 + rng.normal(size=(classes, 1, 24))
    emb = modes[labels, rng.integers(0, 3, len(labels))] + 0.36 * rng.normal(size=(len(labels), 24))
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32), labels


def among(seed: int, count: int) -> tuple[FinetuneCollection, np.ndarray]:
    """A collection of which some classes are labelled, and all labels."""
    emb, labels = spread(seed)
    chosen = np.random.default_rng(seed).permutation(np.unique(labels))[:count]
    told = np.where(np.isin(labels, chosen), labels, UNKNOWN)
    return FinetuneCollection.of("spread", emb, told, START), labels


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_with_a_labelled_head_is_known(seed: int) -> None:
    collection, _ = among(seed, 10)
    for grown in collection.levels(START, 0.42, 0.6):
        level, place = labelled_level(grown, collection.labels), grown.place
        graph = level.graph
        for edge in np.random.default_rng(seed).permutation(len(graph.heads))[:60]:
            one, other = (collection.labels[place == end[edge]] for end in (graph.heads, graph.tails))
            told = np.broadcast_to(one[:, None] != UNKNOWN, (len(one), len(other)))
            assert level.coverage[edge] == pytest.approx(told.mean(), abs=1e-6)
            if told.any():
                same = (one[:, None] == other)[told].mean()
                assert graph.target[edge] == pytest.approx(same, abs=1e-6)


def test_what_no_label_tells_of_has_no_part_in_the_loss() -> None:
    collection, _ = among(0, 6)
    level = labelled_level(collection.levels(START, 0.42, 0.6)[0], collection.labels)
    net, ranges = START.upper.net, START.upper
    graph = replace(level.graph, x=ranges.nodes.apply(level.graph.x), e=ranges.edges.apply(level.graph.e))
    assert (level.coverage == 0).any()
    assert (level.coverage == 1).any()
    other = replace(graph, target=np.where(level.coverage == 0, 1 - graph.target, graph.target))
    losses = [labelled_loss(net, replace(level, graph=each)) for each in (graph, other)]
    assert torch.equal(losses[0], losses[1])
    flipped = replace(graph, target=np.where(level.coverage == 1, 1 - graph.target, graph.target))
    assert labelled_loss(net, replace(level, graph=flipped)) > losses[0] + 0.1


def test_where_labels_say_nothing_the_start_counts_a_little() -> None:
    collection, _ = among(0, 6)
    level = labelled_level(collection.base_level(), collection.labels)
    graph = level.graph
    prior = START.base.probabilities(graph.x, graph.e, graph.degrees, graph.tails)
    found = anchored(level, START.base, 0.1)
    silent, told = level.coverage == 0, level.coverage == 1
    assert silent.any()
    assert told.any()
    assert np.allclose(found.graph.target[silent], prior[silent], atol=1e-6)
    assert np.allclose(found.coverage[silent], 0.1)
    assert (found.graph.target[told] == graph.target[told]).all()
    assert (found.coverage[told] == 1).all()
    assert anchored(level, START.base, 0.0) is level


def test_a_collection_is_clustered_by_another_model_on_the_same_lists() -> None:
    collection, _ = among(6, 10)
    other = random_model(3)
    found = collection.clusters(other)
    fresh = FinetuneCollection.of("spread", collection.emb, collection.labels, other)
    assert (found == fresh.clusters(other)).all()
    assert (collection.clusters(START) == partitions(collection.built)[-1]).all()
    assert not (found == collection.clusters(START)).all()


def test_folds_share_out_the_labelled_classes_of_two_items_or_more() -> None:
    collection, _ = among(1, 11)
    labels = collection.labels.copy()
    labels[np.flatnonzero(labels == UNKNOWN)[0]] = 999
    folds = folds_of(replace(collection, labels=labels), 4, 0)
    unseen = np.concatenate([fold.unseen for fold in folds])
    assert sorted(unseen) == sorted(set(collection.labels.tolist()) - {UNKNOWN})
    assert len(folds) == 4
    hidden = collection.hiding(folds[0].unseen)
    assert set(hidden.labels) == set(collection.labels) - set(folds[0].unseen.tolist())


def test_a_fold_does_not_know_the_classes_that_judge_it() -> None:
    collection, _ = among(4, 9)
    folds = folds_of(collection, 3, 0)
    *of_folds, of_all = Folds([collection], folds, START, QUICK.tuner, 0).tuners
    for tuner, fold in zip(of_folds, folds, strict=True):
        (own,) = tuner.collections
        assert set(own.labels) == set(collection.labels) - set(fold.unseen.tolist())
    assert (of_all.collections[0].labels == collection.labels).all()


def test_scores_of_classes_are_those_of_their_items() -> None:
    collection, labels = among(2, 12)
    classes = np.unique(collection.labels[collection.labels != UNKNOWN])
    clusters = collection.clusters(START)
    found = Fold(collection, classes).scores(clusters)
    every = Fold(replace(collection, labels=labels), np.unique(labels)).scores(clusters)
    assert f_of_classes(every)[0] == pytest.approx(scores.bcubed_f(labels, clusters))
    assert found[:, 0].sum() == (collection.labels != UNKNOWN).sum()


def test_better_on_held_out_classes_is_taken_and_better_on_others() -> None:
    collection, labels = among(3, 12)
    model, about = tuned([collection], [], START, FinetunePlan(folds=3))
    assert not about["kept_start"], about["verdict"]
    rest = Fold(replace(collection, labels=labels), np.unique(labels[collection.labels == UNKNOWN]))
    after, before = (
        float(f_of_classes(rest.scores(collection.clusters(each)))[0]) for each in (model, START)
    )
    assert after > before + 0.02


@pytest.mark.parametrize("seed", range(3))
def test_the_start_is_kept_where_labels_mean_nothing(seed: int, tmp_path: Path) -> None:
    emb, labels = spread(seed)
    path, out = tmp_path / "noise.npz", tmp_path / "tuned.safetensors"
    np.savez(path, emb=emb, labels=np.random.default_rng(seed).permutation(labels))
    model = finetune(FinetuneData([path]), out, START, QUICK)
    assert model.card.about["kept_start"]
    assert "The start is kept unchanged" in model.card.about["said"]
    own, start = LinkageModel.load(out).tensors(), START.tensors()
    assert all(torch.equal(own[name], start[name]) for name in start)
    assert LinkageModel.load(out).sha256 == START.sha256


def test_a_verdict_weighs_classes() -> None:
    rng = np.random.default_rng(0)
    before = np.stack([np.full(10, 20.0), rng.uniform(0.5, 0.9, 10), rng.uniform(0.5, 0.9, 10)], axis=1)
    gain = np.array([0.0, 0.05, 0.05])
    mixed = before + np.where(np.arange(10) % 2, 0.1, -0.1)[:, None] * [0, 1, 1]
    assert verdict(before, before + gain, 0).sure == 1.0
    assert verdict(before, before + gain, 0).better
    assert verdict(before, before - gain, 0).sure == 0.0
    assert not verdict(before, mixed, 0).better
    assert not verdict(before, before, 0).better


def test_a_prior_decides_where_classes_tell_little_and_not_where_they_tell_much() -> None:
    rng = np.random.default_rng(1)
    before = np.stack([np.full(10, 20.0), rng.uniform(0.3, 0.9, 10), rng.uniform(0.3, 0.9, 10)], axis=1)
    noise = rng.normal(size=(10, 1)) * [0, 1, 1]
    noise -= noise.mean(axis=0)
    up = np.array([0, 0.02, 0.02])
    odd, level = before + 0.3 * noise, before + 0.001 * noise
    assert verdict(before, odd, 0, Prior(0.01, 0.016)).better
    assert not verdict(before, odd, 0, Prior(-0.01, 0.016)).better
    for prior in (Prior(0.01, 0.016), Prior(-0.01, 0.016)):
        assert verdict(before, level + up, 0, prior).better
        assert not verdict(before, level - up, 0, prior).better
        assert not verdict(before, before, 0, prior).better


def test_a_resumed_fine_tuning_ends_with_the_same_bits(tmp_path: Path) -> None:
    emb, labels = spread(5)
    np.savez(tmp_path / "some.npz", emb=emb[:180], labels=labels[:180])
    np.savez(tmp_path / "all.npz", emb=emb, labels=np.zeros(len(emb), np.int64))
    data = FinetuneData([tmp_path / "some.npz"], tmp_path / "all.npz")
    plan = replace(QUICK, save_every=0.0)
    whole = finetune(data, tmp_path / "whole.safetensors", START, plan)
    kept = tmp_path / "cut.checkpoint"

    def cut(progress: Progress) -> None:
        if progress.held_out:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(data, tmp_path / "cut.safetensors", START, plan, cut, Checkpoint(kept))
    again = Checkpoint(kept, resume=True)
    resumed = finetune(data, tmp_path / "cut.safetensors", START, plan, checkpoint=again)
    assert resumed.sha256 == whole.sha256
    assert resumed.card.about["verdict"] == whole.card.about["verdict"]
    assert not kept.exists()


def test_labelled_items_of_a_collection_are_one_item_each(tmp_path: Path) -> None:
    emb, labels = spread(6)
    np.savez(tmp_path / "some.npz", emb=emb[:150], labels=labels[:150])
    np.savez(tmp_path / "more.npz", emb=emb[150:300], labels=labels[150:300])
    np.savez(tmp_path / "all.npz", emb=emb, labels=labels)
    (collection,) = read_collections(
        [tmp_path / "some.npz", tmp_path / "more.npz"], tmp_path / "all.npz", START
    )
    assert len(collection.labels) == len(emb)
    assert (collection.labels != UNKNOWN).sum() == 300
    assert len(np.unique(collection.labels)) == 21


def test_a_collection_without_links_ends_as_it_was() -> None:
    emb = np.random.default_rng(0).normal(size=(40, 256)).astype(np.float32)
    collection = FinetuneCollection.of("apart", unit(emb), np.repeat(np.arange(10), 4), START)
    assert not collection.levels(START, 0.42, 0.6)
    model, about = tuned([collection], [], START, QUICK)
    assert about["kept_start"]
    assert model is START


def test_what_cannot_be_fine_tuned_on_is_said(tmp_path: Path) -> None:
    emb, labels = spread(7)
    np.savez(tmp_path / "three.npz", emb=emb[:45], labels=labels[:45])
    np.savez(tmp_path / "narrow.npz", emb=emb[:, :7], labels=labels)
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="three has 3 labelled classes"):
        finetune(FinetuneData([tmp_path / "three.npz"]), out, START, QUICK)
    with pytest.raises(InputError, match=r"not of one space: they have \[7, 24\] components"):
        finetune(FinetuneData([tmp_path / "three.npz"], tmp_path / "narrow.npz"), out, START, QUICK)
    with pytest.raises(InputError, match="at least one labelled file"):
        finetune(FinetuneData([]), out, START, QUICK)
    assert not out.exists()
