"""`shoal check`: nothing is found in a good store, whoever writes it; and whatever is wrong is found."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from engine.collection import snapshots
from engine.collection.check import Report, check
from engine.collection.collection import Engine
from engine.collection.rebuild import rebuild_store
from engine.config import Settings
from engine.errors import NoStore
from engine.storage import schema
from engine.storage.schema import PLACE, K
from engine.storage.store import Store
from engine.storage.tables import Table, Tables, V
from engine.system import files
from engine.types import Assignment
from tests.conftest import Run
from tests.support import collections as support
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread", "warm")
DIM = 6


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    random_model(7).save(path)
    return path


@pytest.fixture
def settings(tmp_path: Path, model_file: Path) -> Settings:
    return settings_of(tmp_path / "store", model_file)


def settings_of(path: Path, model: Path, kind: str = "exact", **more: Any) -> Settings:
    return Settings.model_validate(
        {"store": {"path": path}, "index": {"kind": kind}, "model": {"path": model, "tau": 0.3}, **more}
    )


draw = partial(support.draw, groups=15, dim=DIM, spread=0.1)


def fill(settings: Settings, seed: int = 0) -> None:
    """Upserts, moves and deletes in a few batches; what was made once is copied."""
    made = _MADE.setdefault((settings.index.kind, seed), Path(tempfile.mkdtemp()) / "store")
    if made.exists():
        shutil.copytree(made, settings.store.path)
        return
    with Engine.open(settings, clock=lambda: 5.0) as engine:
        for at in range(5):
            names = [f"k{i}" for i in range(40 * at, 40 * at + 60)]
            points = draw(seed + at, 60)
            points[10:20], points[30] = points[0], draw(seed, 1)[0]  # copies, one of them of an older item
            engine.upsert(names, points)
            engine.delete(names[::7])
    shutil.copytree(settings.store.path, made)


_MADE: dict[tuple[str, int], Path] = {}


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    for made in _MADE.values():
        shutil.rmtree(made.parent)
    _MADE.clear()


def wrong(settings: Settings) -> str:
    report = check(settings, 0)
    assert report.total == len(report.findings) or report.total > 20
    return "\n".join(report.findings)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_nothing_is_found_in_a_good_store(tmp_path: Path, model_file: Path, kind: str) -> None:
    settings = settings_of(tmp_path / "store", model_file, kind)
    fill(settings)
    report = check(settings, 0)
    assert report.findings == report.not_looked_at == []
    assert len(report.looked_at) == 7
    assert report.recall == 1.0 if kind == "exact" else report.recall > 0.97
    assert report.items > 100
    assert 100 < report.sample < report.items  # distinct vectors


def test_an_empty_store_and_none(tmp_path: Path, model_file: Path) -> None:
    settings = settings_of(tmp_path / "store", model_file)
    with pytest.raises(NoStore, match="there is no store"):
        check(settings)
    with Engine.open(settings) as engine:
        engine.delete(["nobody"])
    assert check(settings).findings == []
    with Engine.open(settings) as engine:
        engine.upsert(["one"], draw(0, 1))
    assert check(settings).findings == []
    with Engine.open(settings) as engine:
        engine.delete(["one"])
    assert check(settings).findings == []


Harm = Callable[[Tables], None]


def first(table: Table[K, V]) -> tuple[K, V]:
    return next(table.rows())


def swap_two_neighbours(tables: Tables) -> None:
    lists = tables.lists.columns()
    lists.neighbors[0, [2, 5]] = lists.neighbors[0, [5, 2]]
    tables.lists.put_columns(lists)


def forget_a_neighbour(tables: Tables) -> None:
    """The list is still sorted, but not what exact search finds."""
    lists = tables.lists.columns()
    lists.neighbors[0] = np.append(np.delete(lists.neighbors[0], 3), -1)
    lists.dots[0] = np.append(np.delete(lists.dots[0], 3), -1)
    tables.lists.put_columns(lists)


def cut_a_list(tables: Tables) -> None:
    lists = tables.lists.columns()
    lists.neighbors[0, 4:], lists.dots[0, 4:] = -1, -1
    tables.lists.put_columns(lists)


def change_a_vector(tables: Tables) -> None:
    nodes = tables.nodes.columns()
    nodes.vectors[0, 0] += 9
    tables.nodes.put_columns(nodes)


def double_a_vector(tables: Tables) -> None:
    nodes = tables.nodes.columns()
    nodes.vectors[1] = nodes.vectors[0]
    tables.nodes.put_columns(nodes)


def lose_a_copy(tables: Tables) -> None:
    tables.copies.delete_all([next(tables.copies.pairs())])


def lose_a_node(tables: Tables) -> None:
    tables.nodes.delete(int(tables.nodes.columns().ids[0]))


def lose_a_key(tables: Tables) -> None:
    tables.keys.delete(first(tables.keys)[0])


def lose_a_place(tables: Tables) -> None:
    tables.places.delete(first(tables.places)[0])


def lose_a_member(tables: Tables) -> None:
    tables.members.delete_all([next(tables.members.pairs())])


def lose_a_cluster_tree(tables: Tables) -> None:
    tables.cluster_trees.delete_all([next(tables.cluster_trees.pairs())])


def lose_a_size(tables: Tables) -> None:
    tables.sizes.delete_all([next(tables.sizes.pairs())])


def enlarge_a_cluster(tables: Tables) -> None:
    cluster = next(cluster for _, cluster in tables.clusters.rows() if not cluster.ended)
    tables.clusters.put(cluster.id, replace(cluster, size=cluster.size + 1))


def move_a_node(tables: Tables) -> None:
    """The tables agree with each other, but not with the lists."""
    places = list(tables.places.rows())
    sizes = Counter(tree for _, tree in places)
    (item, was), (_, other) = next(
        (mine, theirs)
        for mine in places
        for theirs in places
        if mine[1] != theirs[1] and sizes[mine[1]] == sizes[theirs[1]] + 1
    )
    tables.places.put(item, other)
    tables.members.delete_all([(was, item)])
    tables.members.add([(other, item)])


def lose_an_event(tables: Tables) -> None:
    tables.events.delete(first(tables.events)[0])


def lose_a_commit(tables: Tables) -> None:
    tables.commits.delete(list(tables.commits.rows())[2][0])


def tell_a_lie(tables: Tables) -> None:
    """The last event of an item says it is elsewhere."""
    for place, body in reversed(list(tables.events.stored())):
        event = schema.unpack_event(body)
        if isinstance(event, Assignment) and event.cluster:
            lie = schema.pack_event(replace(event, cluster=event.cluster + 1))
            tables.events.raw.put(PLACE.pack(place), lie.ljust(len(body)))
            return


def give_an_id_twice(tables: Tables) -> None:
    state = tables.meta.state
    tables.meta.put_state(state._replace(counters={**state.counters, "next_item": 3}))


HARM: list[tuple[Harm, str]] = [
    (swap_two_neighbours, "is not sorted|is not that of the vectors"),
    (forget_a_neighbour, "is not what exact search finds"),
    (cut_a_list, "has fewer than 10 neighbours"),
    (change_a_vector, "has a similarity that is not that of the vectors"),
    (double_a_vector, "two nodes have the same vector"),
    (lose_a_copy, "copies and items do not say the same"),
    (lose_a_node, "items and nodes do not name the same nodes"),
    (lose_a_key, "keys and items do not name the same"),
    (lose_a_place, "nodes and places do not hold the same"),
    (lose_a_member, "members and places do not say the same"),
    (lose_a_cluster_tree, "cluster_trees and trees do not say the same"),
    (lose_a_size, "sizes does not hold the final clusters"),
    (enlarge_a_cluster, r"cluster \d+ has \d+ items, not \d+"),
    (move_a_node, r"cluster \d+ has|node \d+ is in another tree"),
    (lose_an_event, r"event \d+-1 stands where"),
    (lose_a_commit, "do not lead without a gap"),
    (tell_a_lie, "is not where the item is|its commit records"),
    (give_an_id_twice, "has an id not below `next_item`"),
]


@pytest.mark.parametrize(("harm", "words"), HARM, ids=[harm.__name__ for harm, _ in HARM])
def test_what_is_wrong_is_found(settings: Settings, harm: Harm, words: str) -> None:
    """All checksums match: only what the tables mean tells."""
    fill(settings)
    with Store.open(settings.store.path) as opened:
        opened.environment.write(harm)
    for file in settings.store.path.glob("derived-*"):
        file.unlink()
    found = wrong(settings)
    assert re.search(words, found), found


@pytest.mark.parametrize("harm", [harm for harm, _ in HARM], ids=[harm.__name__ for harm, _ in HARM])
def test_a_rebuild_mends_what_it_is_said_to_mend(settings: Settings, harm: Harm) -> None:
    fill(settings)
    with Store.open(settings.store.path) as opened:
        opened.environment.write(harm)
    findings = check(settings, 0).findings
    if all("shoal rebuild" in finding for finding in findings if "derived-" not in finding):
        rebuild_store(settings, clock=lambda: 6.0)
        for file in settings.store.path.glob("derived-*"):
            file.unlink()
        assert check(settings, 0).findings == []
        with Engine.open(settings) as engine:
            engine.upsert(["one more"], draw(80, 1))
        assert check(settings, 0).findings == []
    else:
        assert any("restore a backup" in finding for finding in findings)


def test_every_flipped_byte_of_a_closed_store_is_found(settings: Settings) -> None:
    fill(settings)
    file = settings.store.path / "data.mdb"
    good = file.read_bytes()
    for at in np.random.default_rng(5).integers(len(good), size=20).tolist():
        bad = bytearray(good)
        bad[at] ^= 0x40
        file.write_bytes(bad)
        assert "is not what was written" in wrong(settings), f"{at=}"


@pytest.mark.parametrize(
    "file", ["index-*.hnsw", "index-*.npz", "index-*.json", "derived-*.npz", "derived-*.json"]
)
def test_damaged_snapshots_are_found(tmp_path: Path, model_file: Path, file: str) -> None:
    settings = settings_of(tmp_path / "store", model_file, "hnsw")
    fill(settings)
    path = max(settings.store.path.glob(file))
    path.write_bytes(path.read_bytes()[:-7])
    assert "is damaged; delete it" in wrong(settings)
    assert check(settings).total == 1


def test_snapshots_of_something_else_are_found(tmp_path: Path, model_file: Path) -> None:
    one, other = (settings_of(tmp_path / name, model_file, "hnsw") for name in ("one", "other"))
    fill(one)
    fill(other, seed=50)
    for file in [*one.store.path.glob("index-*"), *one.store.path.glob("derived-*")]:
        (other.store.path / file.name).write_bytes(file.read_bytes())
    assert "has other vectors than the store" in wrong(other)


def test_wrong_columns_of_what_is_derived_are_found(settings: Settings) -> None:
    """All digests match."""
    fill(settings)
    folder = settings.store.path
    version = files.versions(folder, snapshots.LEVELS)[0]
    depends = orjson.loads((folder / f"derived-{version}.json").read_bytes())["depends"]
    saved = snapshots.read_levels(folder, version, depends)
    assert saved is not None
    snapshots.save_levels(
        folder, version, depends, [replace(saved[0], density=saved[0].density + 1), *saved[1:]]
    )
    assert "is not what follows from the lists" in wrong(settings)


def test_other_settings_are_no_finding_but_said(settings: Settings) -> None:
    fill(settings)
    report = check(settings.with_model(tau=0.9))
    assert report.findings == []
    assert "was made with tau 0.3, not 0.9" in report.not_looked_at[0]


def test_beside_a_writer(settings: Settings, shoal: Run, model_file: Path) -> None:
    """From another process, of a version that stays as it is while others are committed."""
    with Engine.open(settings, clock=lambda: 5.0) as engine:
        for at in range(6):
            engine.upsert([f"k{i}" for i in range(20 * at, 20 * at + 40)], draw(at, 40))
        done = shoal(
            "check",
            "--store",
            settings.store.path,
            "--index",
            "exact",
            "-m",
            model_file,
            "--tau",
            "0.3",
            "--json",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answer = orjson.loads(done.stdout)
        assert answer["ok"]
        assert answer["version"] == engine.version


def test_the_command_ends_with_the_exit_code_of_damage(
    settings: Settings, shoal: Run, model_file: Path
) -> None:
    fill(settings)
    with Store.open(settings.store.path) as opened:
        opened.environment.write(lose_a_member)
    done = shoal(
        "check", "--store", settings.store.path, "--index", "exact", "-m", model_file, "--tau", "0.3"
    )
    assert done.returncode == 8
    assert "found: tables: the tables members and places do not say the same" in done.stderr
    assert "Traceback" not in done.stderr
    assert shoal("check", "--store", "nowhere").returncode == 5


def test_the_command_ends_with_the_exit_code_of_what_kept_it_from_looking(
    settings: Settings, shoal: Run, model_file: Path
) -> None:
    fill(settings)
    flags = ("check", "--store", settings.store.path, "--index", "exact")
    for model, code, words in (
        (("-m", "none.safetensors"), 3, "the model none.safetensors cannot be read"),
        (("-m", model_file, "--tau", "0.9"), 9, "was made with tau 0.3, not 0.9"),
    ):
        done = shoal(*flags, *model)
        assert done.returncode == code
        assert "nothing is wrong in what was looked at." in done.stdout
        assert words in done.stderr
        answer = orjson.loads(shoal(*flags, *model, "--json").stdout)
        assert not answer["ok"]
        assert words in answer["not_looked_at"][0]


def test_report_counts_what_it_does_not_tell() -> None:
    report = Report("x")
    report.note("lists", [f"finding {i}" for i in range(50)])
    assert report.total == 50
    assert len(report.findings) == 21
    assert report.findings[-1] == "lists: and 30 more"
