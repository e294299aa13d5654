"""Training of `lander`: its network in DGL, its graphs, and a run from a file to a model that runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import InputError
from engine.evaluation import scores
from engine.evaluation.bulk import hierarchy, partitions
from engine.model.adapter import Adapter
from engine.model.lander import LanderCard, LanderModel, shapes
from engine.training import checkpoint
from engine.training.datasets import SpaceFiles, read_space
from engine.training.discriminant import through
from engine.training.lander.graphs import joined, levels, true_levels
from engine.training.lander.metric import MetricTrainer
from engine.training.lander.network import Lander
from engine.training.lander.plan import LanderPlan
from engine.training.lander.train import begun, read_model, train
from engine.training.lander.trainer import Trainer, graph_loss
from engine.training.train import evaluate
from engine.training.training_run import Checkpoint, Progress, TrainingRun
from engine.types import Epoch
from tests.support import plain_lander
from tests.support.random_models import random_lander
from tests.training.test_train import clusters, file_of

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = LanderPlan(steps=40, hidden=32, edges=1500, most_items=200, checks=2)


@pytest.mark.parametrize("card", [
    LanderCard(16, hidden=12), LanderCard(16, hidden=12, average=False),
    LanderCard(16, "gat", hidden=12, heads=2), LanderCard(16, "gat", hidden=9, average=False),
], ids=lambda card: f"{card.variant}-{card.average}")  # fmt: skip
def test_the_network_in_training_is_the_one_that_runs(card: LanderCard) -> None:
    """The same weights, the same graph: the same probabilities, and those of the plain code."""
    net = Lander(card).eval()
    assert {name: tuple(each.shape) for name, each in net.state_dict().items()} == shapes(card)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    model, data = net.model(), clusters(1, 200)
    built = hierarchy(data.emb, model, 0.5, 2)
    for level, graph in zip(built.levels, levels(data.emb, data.labels, model, (0.5, 0.5), 2), strict=True):
        with torch.no_grad():
            p = torch.sigmoid(net(graph.graph(), graph.features(card.average), graph.affinity())).numpy()
        seen = level.graph()
        n = level.nodes.rows
        cut = replace(seen, identity=seen.identity[:n], mean=seen.mean[:n])
        plain, _ = plain_lander.answers(model, cut)
        assert np.abs(np.concatenate(plain) - p).max() < 1e-5
        ranks = np.arange(len(p)) - np.searchsorted(graph.heads, graph.heads)
        assert np.abs(level.linkage[graph.heads, ranks] - p).max() < 1e-5


def test_true_levels_lead_to_the_classes() -> None:
    data = clusters(2, 300, 6)
    for k, depth in ((10, 2), (5, 3), (3, 4)):
        graphs = true_levels(data.emb, data.labels, k)
        assert 2 <= len(graphs) <= depth
        assert (graphs[0].degrees == k).all()
        sizes = [len(graph.degrees) for graph in graphs]
        assert sizes == sorted(sizes, reverse=True)
        for graph in graphs:
            assert set(np.unique(graph.target)) <= {0.0, 1.0}  # supernodes are pure
            assert graph.size.sum() == 300


def test_targets_are_the_chance_that_a_pair_across_is_of_one_class() -> None:
    data, model = clusters(3, 200), random_lander(3, 16)
    built = hierarchy(data.emb, model, 0.5, 2, Epoch(0.0, 1.0, 0))
    base, upper = levels(data.emb, data.labels, model, (0.5, 0.5), 2)
    assert (base.target == (data.labels[base.heads] == data.labels[base.tails])).all()
    node = built.levels[0].above[partitions(built)[0]]
    for t in range(0, len(upper.target), 7):
        left, right = (data.labels[node == end] for end in (upper.heads[t], upper.tails[t]))
        assert upper.target[t] == pytest.approx((left[:, None] == right).mean(), abs=1e-6)


def test_options_of_the_loss() -> None:
    """Focal loss and balance change the weights of edges; alone, each graph counts as beside others."""
    data = clusters(4, 250)
    parts = levels(data.emb, data.labels, random_lander(1, 16), (0.5, 0.5), 2)
    net = Lander(LanderCard(16, hidden=8)).eval()
    plans = [SMALL, replace(SMALL, focal=2.0), replace(SMALL, balance=True), replace(SMALL, others=0.0)]
    losses = [float(graph_loss(net, parts, plan).detach()) for plan in plans]
    assert len({round(loss, 6) for loss in losses}) == 4
    with torch.no_grad():  # a network that says no to everything
        net.classifier_conn[-1].weight.zero_()  # type: ignore[index]
        net.classifier_conn[-1].bias.copy_(torch.tensor([3.0, -3.0]))  # type: ignore[index]
        whole = joined(parts[:1])
        rare = replace(whole, target=(np.arange(len(whole.target)) == 0).astype(np.float32))
        plain, balanced = (graph_loss(net, [rare], plan) for plan in (SMALL, plans[2]))
    assert balanced > 10 * plain


@pytest.mark.parametrize("variant", ["mean", "gat"])
def test_a_run_from_file_to_model(tmp_path: Path, variant: str) -> None:
    """Classes never seen are found better than by chance; the card says how they were held out."""
    data = clusters(5, 600, 20)
    known = data.labels < 14
    parts = [replace(data, emb=data.emb[rows], labels=data.labels[rows]) for rows in (known, ~known)]
    file = file_of(parts[0], tmp_path / "a.npz")
    steps, told = [], []
    model = train(
        SpaceFiles([file]), tmp_path / "m.safetensors", replace(SMALL, steps=120, variant=variant),
        progress=lambda p: (steps.append(p.step), told.append(p.held_out)),
    )  # fmt: skip
    assert steps[-1] == 120
    assert any(told)
    assert model.card.about["steps"] == 120
    assert len(model.card.about["history"]) >= 2
    again = LanderModel.load(tmp_path / "m.safetensors")
    assert (again.sha256, again.tau) == (model.sha256, model.tau)
    other = parts[1]
    alone = scores.bcubed_f(other.labels, np.arange(len(other.labels)))
    assert evaluate(model, other)["Fb"] > alone + 0.25


def test_the_same_seed_gives_the_same_weights() -> None:
    data = clusters(6, 200)
    runs = []
    for seed in (1, 1, 2):
        trainer = Trainer([data], replace(SMALL, seed=seed))
        runs.append(([trainer.step(0.05 + 0.1 * at) for at in range(8)], trainer.model().sha256))
    assert runs[0] == runs[1] != runs[2]


def test_training_goes_on_from_a_model(tmp_path: Path) -> None:
    file = file_of(clusters(7), tmp_path / "a.npz")
    start = random_lander(2, 16, variant="gat", heads=2, hidden=10)
    model = train(SpaceFiles([file]), tmp_path / "m.safetensors", replace(SMALL, steps=2), start=start)
    assert replace(model.card, about={}, tau=0.5, base_tau=None, max_levels=2) == start.card
    assert model.card.about["started_from"] == start.sha256
    moved = max(float((model.weights[name] - start.weights[name]).abs().max()) for name in start.weights)
    assert 0 < moved < 0.1


def test_the_model_and_its_adapter_are_written(tmp_path: Path) -> None:
    data, out, adapter = clusters(5, 600, 20), tmp_path / "m.safetensors", tmp_path / "a.safetensors"
    known = data.labels < 14
    parts = [replace(data, emb=data.emb[rows], labels=data.labels[rows]) for rows in (known, ~known)]
    files = [file_of(part, tmp_path / f"{at}.npz") for at, part in enumerate(parts)]
    model = train(SpaceFiles(files[:1], files[1:], adapter), out, SMALL)
    written = Adapter.load(adapter)
    assert LanderModel.load(out).card.about["adapter"] == written.sha256
    mapped = replace(parts[1], emb=through(written, parts[1].emb))
    best = max(score for _, score in model.card.about["history"])
    assert evaluate(model, mapped)["Fb"] == pytest.approx(best)
    with pytest.raises(InputError, match="behind an adapter"):
        read_model(out)
    with pytest.raises(InputError, match="only a lander that begins with a metric learns an adapter"):
        train(SpaceFiles(files[:1], (), adapter), out, replace(SMALL, begin="random"))


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    out, good = tmp_path / "m.safetensors", file_of(clusters(1), tmp_path / "good.npz")
    with pytest.raises(InputError, match="at least one labelled file"):
        train(SpaceFiles([]), out, SMALL)
    other = clusters(1)
    narrow = file_of(replace(other, emb=other.emb[:, :9]), tmp_path / "narrow.npz")
    with pytest.raises(InputError, match="one embedding space: good has 16 components, narrow 9"):
        train(SpaceFiles([good, narrow]), out, SMALL)
    with pytest.raises(InputError, match="the model to start from has 5 components, good 16"):
        train(SpaceFiles([good]), out, SMALL, start=random_lander(1, 5))
    one = file_of(replace(other, labels=np.zeros_like(other.labels)), tmp_path / "one.npz")
    with pytest.raises(InputError, match="one has one class only"):
        train(SpaceFiles([one]), out, SMALL)
    alone = file_of(replace(other, labels=np.arange(300)), tmp_path / "alone.npz")
    with pytest.raises(InputError, match="alone: no class has two distinct items"):
        train(SpaceFiles([alone]), out, SMALL)
    np.savez(tmp_path / "bare.npz", emb=other.emb)
    with pytest.raises(InputError, match="labels"):
        train(SpaceFiles([tmp_path / "bare.npz"]), out, SMALL)
    assert not out.exists()


def test_a_label_in_several_files_is_one_class(tmp_path: Path) -> None:
    data = clusters(5, 600, 20)
    rows = np.arange(600) % 2 == 0
    parts = [replace(data, emb=data.emb[own], labels=data.labels[own]) for own in (rows, ~rows)]
    files = [file_of(part, tmp_path / f"{at}.npz") for at, part in enumerate(parts)]
    sources = read_space(files)
    trainer = MetricTrainer(sources, SMALL)
    assert sum(len(fold.classes) for fold in trainer.folds) == 20
    _, judges = begun(sources, replace(SMALL, begin="random"), None, [])
    assert [list(judge.classes) for judge in judges] == [list(judges[0].classes)] * 2
    assert len(judges[0].classes) == 4


def test_items_with_nan_are_left_out(tmp_path: Path) -> None:
    data = clusters(8, 200)
    data.emb[::20] = np.nan
    file = file_of(data, tmp_path / "nan.npz")
    model = train(SpaceFiles([file]), tmp_path / "m.safetensors", replace(SMALL, steps=3))
    assert model.card.dim == 16


class Stopped(Exception):
    pass


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    file, out = file_of(clusters(9, 250, 20), tmp_path / "a.npz"), tmp_path / "m.safetensors"
    plan = replace(SMALL, steps=70, save_every=0.0, checks=4, most_items=120, edges=600)
    wanted = train(SpaceFiles([file]), out, plan)
    kept = tmp_path / "m.checkpoint"

    def stop(progress: Progress) -> None:
        if progress.step >= 50:
            raise Stopped

    with pytest.raises(Stopped):
        train(SpaceFiles([file]), out, plan, progress=stop, checkpoint=Checkpoint(kept))
    steps: list[int] = []
    again = train(
        SpaceFiles([file]), out, plan, lambda p: steps.append(p.step), None, Checkpoint(kept, resume=True)
    )
    assert min(steps) >= 49  # what was done is not done again
    assert (again.sha256, again.card) == (wanted.sha256, wanted.card)
    assert not kept.exists()


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    file, out = file_of(clusters(9, 200), tmp_path / "a.npz"), tmp_path / "m.safetensors"
    kept = Checkpoint(tmp_path / "m.checkpoint", resume=True)
    plan = replace(SMALL, steps=60, save_every=0.0)

    def stop(progress: Progress) -> None:
        raise Stopped

    with pytest.raises(InputError, match="finished, or was never begun"):
        train(SpaceFiles([file]), out, plan, checkpoint=kept)
    with pytest.raises(Stopped):
        train(SpaceFiles([file]), out, plan, progress=stop, checkpoint=Checkpoint(kept.path))
    with pytest.raises(InputError, match=r"of another plan \(seed 0, not 5\); repeat the original options"):
        train(SpaceFiles([file]), out, replace(plan, seed=5), checkpoint=kept)
    other = file_of(clusters(10, 200), tmp_path / "b.npz")
    with pytest.raises(InputError, match=r"is of other files; repeat the original options"):
        train(SpaceFiles([other]), out, plan, checkpoint=kept)
    with pytest.raises(InputError, match="is of other files and another start and another plan"):
        train(SpaceFiles([other]), out, plan, start=random_lander(1, 16), checkpoint=kept)
    state = checkpoint.load(kept.path)
    checkpoint.save(kept.path, state | {"mark": 64 * "0"})
    with pytest.raises(InputError, match="was left by an earlier release"):
        train(SpaceFiles([file]), out, plan, checkpoint=kept)
    kept.path.write_bytes(kept.path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        train(SpaceFiles([file]), out, plan, checkpoint=kept)
    assert not out.exists()


@pytest.mark.parametrize(("scored", "steps"), [((0.5, 0.4, 0.3, 0.4), 0), ((0.5, 0.4, 0.3, 0.5), 3)])
def test_a_training_ends_where_the_score_has_stopped_rising(scored: Sequence[float], steps: int) -> None:
    """Three checks below the best end it; otherwise it goes on to the last step."""
    data, plan = clusters(11, 60), replace(SMALL, steps=3, patience=3, edges=200)
    run = TrainingRun(Trainer([data], plan), None, plan.length, {})
    run.history, run.score = [[at, score] for at, score in enumerate(scored)], max(scored)
    run.run(lambda _: None, None)
    assert run.trainer.steps == steps


def test_a_long_training_has_checks_enough_to_end_early() -> None:
    length = LanderPlan(begin="random").length
    assert (length.minutes, length.steps) == (20.0, None)
    assert length.checks > length.patience
