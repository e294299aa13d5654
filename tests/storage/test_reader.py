"""Reading a store: every answer against the toy that was written, alone and beside a writer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.errors import CorruptStore, InputError, NoStore, StoreError
from engine.storage.reader import View
from engine.storage.schema import ID
from engine.storage.store import Store
from tests.support import warm_python
from tests.support.fake_collection import CONFIG, ROOT, Toy

SEED = 21


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Toy]:
    """Versions enough for three levels and many ended clusters; the last has three levels."""
    toy = Toy(SEED)
    with Store.open(tmp_path, CONFIG) as store:
        while store.version < 12 or toy.counters["levels"] < 3:
            store.commit(toy.step(12))
    return tmp_path, toy


def named(toy: Toy, level: int) -> dict[int, set[str]]:
    """Cluster -> keys of its items at a level."""
    path = dict(zip(toy.trees.handles.tolist(), toy.trees.paths[:, level].tolist(), strict=True))
    found: dict[int, set[str]] = {}
    for item, tree in toy.place.items():
        found.setdefault(path[tree], set()).add(toy.rows[item][0].decode())
    return found


def all_pages(ask: Any, field: str, limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor = None
    while True:
        answer = ask(cursor=cursor, limit=limit)
        assert 0 < len(answer[field]) <= limit
        rows += answer[field]
        cursor = answer["cursor"]
        if cursor is None:
            return rows


def test_an_item_knows_its_clusters_at_every_level(written: tuple[Path, Toy]) -> None:
    path, toy = written
    with View.open(path) as view:
        for level in (0, 1, 2, 5, None):
            clusters = named(toy, min(level, 2) if level is not None else 2)
            for cluster, keys in clusters.items():
                assert {view.item(key, level)["cluster"] for key in keys} == {cluster}
        for item, (key, _, time, payload, version) in toy.rows.items():
            answer = view.item(key)
            assert answer["key"] == key.decode()
            assert answer["collection"] == "toy"
            assert answer["version"] == toy.version
            assert (answer["time"], answer["updated"]) == (time, version)
            assert answer["payload"] == (orjson.loads(payload) if payload else None)
            tree = toy.trees.handles.tolist().index(toy.place[item])
            assert answer["path"] == list(dict.fromkeys(toy.trees.paths[tree].tolist()[::-1]))


@pytest.mark.parametrize("limit", [1, 3, 1000])
@pytest.mark.parametrize("level", [None, 0, 1, 9])
def test_clusters_are_paged_in_order(written: tuple[Path, Toy], level: int | None, limit: int) -> None:
    path, toy = written
    wanted = {c: len(keys) for c, keys in named(toy, 2 if level is None else min(level, 2)).items()}
    with View.open(path) as view:
        by_size = all_pages(lambda **page: view.clusters(level, **page), "clusters", limit)
        by_id = all_pages(lambda **page: view.clusters(level, "id", **page), "clusters", limit)
    largest_first = sorted(wanted.items(), key=lambda pair: (-pair[1], pair[0]))
    assert [(row["cluster"], row["size"]) for row in by_size] == largest_first
    assert [(row["cluster"], row["size"]) for row in by_id] == sorted(wanted.items())


@pytest.mark.parametrize("level", [None, 0, 1, 9])
def test_the_newest_clusters_come_first(written: tuple[Path, Toy], level: int | None) -> None:
    path, toy = written
    wanted = sorted(named(toy, 2 if level is None else min(level, 2)), reverse=True)
    with View.open(path) as view:
        for limit in (1, 3, 1000):
            found = all_pages(
                lambda n=limit, **page: view.clusters(level, "newest", **page), "clusters", limit
            )
            assert [row["cluster"] for row in found] == wanted
        assert view.clusters(level, "newest", cursor=f"{10**9}")["clusters"][0]["cluster"] == wanted[0]
        assert view.final([10**6, *wanted], 100)[1] == [
            row for row in (view.clusters(level, "newest", limit=1000)["clusters"]) if row["parent"] is None
        ]


def test_a_page_of_members_ends_where_its_payloads_are_many(written: tuple[Path, Toy]) -> None:
    path, toy = written
    cluster, keys = max(named(toy, 2).items(), key=lambda pair: len(pair[1]))
    payloads = {row[0].decode(): row[3] for row in toy.rows.values()}
    with View.open(path) as view:
        for most in (0, 8, 20, 10**6):
            found: list[dict[str, Any]] = []
            cursor = None
            while True:
                page = view.members(cluster, cursor, 1000, most)
                sizes = [len(payloads[item["key"]]) for item in page["items"]]
                assert sum(sizes[:-1]) <= most, "it ends with the first that exceeds the bound"
                found += page["items"]
                cursor = page["cursor"]
                if cursor is None:
                    break
                assert sum(sizes) > most
            assert {item["key"] for item in found} == keys
            for item in found:
                payload = payloads[item["key"]]
                assert item["payload"] == (orjson.loads(payload) if payload else None)


def test_the_way_of_an_ended_cluster_leads_to_living_final_ones(written: tuple[Path, Toy]) -> None:
    path, toy = written
    final = named(toy, 2).keys()
    with View.open(path) as view:
        led = [set(view.cluster(cluster)["now"]) for _, cluster in toy.ended]
        assert any(led)
        assert all(now <= final for now in led)
        for cluster in final:
            assert view.cluster(cluster)["now"] == []


def test_a_cluster_has_its_members_parent_and_children(written: tuple[Path, Toy]) -> None:
    path, toy = written
    levels = [named(toy, level) for level in range(3)]
    paths = [list(dict.fromkeys(row[::-1])) for row in toy.trees.paths.tolist()]
    with View.open(path) as view:
        for level in levels:
            for cluster, keys in level.items():
                found = view.cluster(cluster)
                spans = [i for i, other in enumerate(levels) if cluster in other]
                assert (found["finest"], found["coarsest"]) == (spans[0], spans[-1])
                assert found["peak"] in keys
                assert (found["ended"], found["into"]) == (None, [])
                parents = {
                    row[row.index(cluster) - 1] if row.index(cluster) else None
                    for row in paths
                    if cluster in row
                }
                assert {found["parent"]} == parents
                below = {row[row.index(cluster) + 1] for row in paths if cluster in row[:-1]}
                assert found["children"] == sorted(below)
                for limit in (2, 1000):
                    items = all_pages(lambda c=cluster, **page: view.members(c, **page), "items", limit)
                    assert len(items) == len(keys)
                    assert {item["key"] for item in items} == keys
                    assert {item["tree"] for item in items} <= set(toy.trees.handles.tolist())


def test_an_ended_cluster_says_where_its_members_went(written: tuple[Path, Toy]) -> None:
    path, toy = written
    with View.open(path) as view:
        assert len(toy.ended) > 5
        for version, cluster in toy.ended:
            found = view.cluster(cluster)
            assert found["ended"] == version
            assert found["children"] == []
            assert all(other > 0 for other in found["into"])
            assert view.members(cluster)["items"] == []
        assert any(view.cluster(cluster)["into"] for _, cluster in toy.ended)


def test_changes_are_paged_without_gap_or_repeat(written: tuple[Path, Toy]) -> None:
    path, toy = written
    with View.open(path) as view:
        once = view.changes(limit=10_000)["changes"]
        seen: list[dict[str, Any]] = []
        after = None
        while True:
            answer = view.changes(after, limit=7)
            assert not answer["gap"]
            seen += answer["changes"]
            version, ordinal = map(int, answer["cursor"].split("-"))
            if not answer["changes"]:
                break
            after = (version, ordinal)
        assert seen == once
        assert (version, ordinal) == after
        assert [e["version"] for e in once] == sorted(e["version"] for e in once)
        assert {e["version"] for e in once} == set(range(1, toy.version + 1))
        final: set[int] = set()
        for event in once:
            if event.get("event") == "emerge":
                final.add(event["cluster"])
            if event.get("event") == "vanish":
                final.remove(event["cluster"])
        assert final == named(toy, 2).keys()


def test_a_reader_that_comes_late_is_told_of_the_gap(tmp_path: Path) -> None:
    toy = Toy(3)
    with Store.open(tmp_path, CONFIG, events_max_bytes=1) as store:
        for _ in range(4):
            store.commit(toy.step())
    with View.open(tmp_path) as view:
        assert view.changes((2, 0))["gap"]
        assert view.changes((3, 0))["gap"], "version 3 had more events than that"
        assert not view.changes((3, 10**6))["gap"]
        assert not view.changes()["gap"]
        assert view.summary()["changes_from"] == 4


def test_the_summary_and_levels_count(written: tuple[Path, Toy]) -> None:
    path, toy = written
    with View.open(path) as view:
        summary = view.summary()
        assert (summary["version"], summary["items"]) == (toy.version, len(toy.rows))
        assert (summary["levels"], summary["clusters"]) == (3, len(named(toy, 2)))
        for level, found in enumerate(view.levels()["levels"]):
            sizes = [len(keys) for keys in named(toy, level).values()]
            assert found == {"level": level, "clusters": len(sizes), "singletons": sizes.count(1)}


def test_what_is_not_there_is_said(written: tuple[Path, Toy], tmp_path: Path) -> None:
    path, _ = written
    with View.open(path) as view:
        for key in ("nobody", "", "x" * 600, "\N{SNOWMAN}"):
            with pytest.raises(InputError, match="no item has the key"):
                view.item(key)
        for cluster in (0, -1, 10**6, 2**70):
            with pytest.raises(InputError, match="there is no cluster"):
                view.cluster(cluster)
        with pytest.raises(InputError, match="1 to 10000 entries, not 0"):
            view.clusters(limit=0)
        for cursor in ("x", "1", "1-2-3", "1-x", "-1-1", f"{2**64}-1"):
            with pytest.raises(InputError, match="not the cursor"):
                view.clusters(cursor=cursor)
        with pytest.raises(InputError, match="'size' or by 'id'"):
            view.clusters(order="age")
        with pytest.raises(InputError, match="no place in the log"):
            view.changes((-1, 0))
    with pytest.raises(NoStore, match="there is no store in"):
        View.open(tmp_path / "elsewhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "data.mdb").write_bytes(b"x" * 8192)
    with pytest.raises(CorruptStore, match="damaged"):
        View.open(tmp_path / "odd")


@pytest.mark.process
def test_a_reader_beside_a_writer_sees_whole_versions(tmp_path: Path) -> None:
    """Another process writes, kept small at first so that its map grows; every answer is of one version."""
    script = """
import sys
from engine.storage.store import Store
from tests.support.fake_collection import Toy
toy = Toy(int(sys.argv[2]))
with Store.open(sys.argv[1], {"collection": "toy", "dim": None}, map_bytes=1 << 18) as store:
    for _ in range(60):
        store.commit(toy.step(60))
        print(store.version, flush=True)
"""
    command = [warm_python.executable(), "-c", script, str(tmp_path), str(SEED)]
    sizes = {}
    toy = Toy(SEED)
    for _ in range(60):
        toy.step(60)
        sizes[toy.version] = (len(toy.rows), toy.counters["levels"], int((toy.clusters.parent == 0).sum()))
    failures: list[str] = []
    seen: set[int] = set()

    def ask(view: View) -> None:
        while not failures and view.version < 60:
            found = view.summary()
            if sizes[found["version"]] != (found["items"], found["levels"], found["clusters"]):
                failures.append(f"seed {SEED}: {found}")
            page = view.clusters(limit=1_000)
            if sum(row["size"] for row in page["clusters"]) != sizes[page["version"]][0]:
                failures.append(f"seed {SEED}: version {page['version']}")
            seen.add(page["version"])

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "1\n"
        with View.open(tmp_path, map_bytes=1 << 18) as view:
            threads = [threading.Thread(target=ask, args=(view,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            writer.stdout.read()
            assert writer.wait() == 0
            for thread in threads:
                thread.join()
            assert view.version == 60
            assert view.check_readers() == 0
    assert not failures
    assert len(seen) > 5


def test_the_writers_process_reads_through_the_writers_environment(tmp_path: Path) -> None:
    toy = Toy(5)
    with Store.open(tmp_path, CONFIG) as store:
        view = View.beside(store)
        assert view.version == 0
        for _ in range(3):
            store.commit(toy.step())
            assert view.summary()["items"] == len(toy.rows)
        view.close()
        store.commit(toy.step())


@pytest.mark.process
def test_reading_needs_no_write_access_to_the_data_and_says_what_it_needs(written: tuple[Path, Toy]) -> None:
    """As a user that may only read: neither the writer nor a reader may take its lock, and all say so."""
    path, _ = written
    script = """
import os, sys
from engine.errors import StoreError
from engine.storage.store import Store
from engine.storage.reader import View
from engine.storage.verify import walk
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
for opens in (Store.open, View.open, lambda path: walk(path, 'beside')):
    try:
        opens(".")
    except StoreError as error:
        print(error)
"""
    for part in path.iterdir():
        os.chmod(part, 0o444)
    os.chmod(path, 0o555)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    os.chmod(path, 0o755)
    assert done.returncode == 0, done.stderr
    writing, *reading = done.stdout.splitlines()
    assert "cannot be written" in writing
    for told in reading:
        assert re.fullmatch(r"\. cannot be read .*Permission denied.*run this as the user who writes.*", told)
    assert len(reading) == 2


@pytest.mark.process
def test_the_view_needs_no_torch() -> None:
    script = "import sys, engine.storage.reader; "
    script += "sys.exit(bool({'torch', 'dgl', 'numba'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 0


def test_another_format_is_refused(written: tuple[Path, Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = written
    monkeypatch.setattr("engine.storage.schema.FORMAT", 3)
    with pytest.raises(StoreError, match="has format 2, this release reads 3"):
        View.open(path)


def test_damage_is_never_served(written: tuple[Path, Toy], tmp_path: Path) -> None:
    path, toy = written
    item = max(toy.rows)
    key = toy.rows[item][0]
    with Store.open(path, CONFIG) as store:
        body = dict(store.rows("items"))[ID.pack(item)]
    data = bytearray((path / "data.mdb").read_bytes())
    at = data.find(body)
    while at >= 0:
        data[at] ^= 1
        at = data.find(body, at + 1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(data)
    with View.open(tmp_path / "bad") as view, pytest.raises(CorruptStore, match="table items, key"):
        view.item(key)
    shutil.rmtree(tmp_path / "bad")
