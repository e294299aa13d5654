"""An erased item: neither its key nor its vector is in any byte of the store; and readers go on."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from engine.collection.check import check
from engine.collection.collection import Engine
from engine.collection.erase import FreshIndex
from engine.config import Settings
from engine.errors import StoreError, StoreFull, WriterAway
from engine.model.linkage import LinkageModel
from engine.storage import schema
from engine.storage.reader import View
from engine.types import Batch, DeadLetter
from engine.vectors import quantize
from tests.conftest import ROOT, Run
from tests.support import warm_python
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread", "warm")
DIM = 12
SECRET = "the key of somebody: ärger"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> LinkageModel:
    return random_model(7)


@pytest.fixture(params=["exact", "hnsw"])
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    return settings_of(tmp_path / "store", request.param)


def settings_of(path: Path, kind: str = "exact") -> Settings:
    return Settings.model_validate(
        {"store": {"path": path}, "index": {"kind": kind}, "limits": {"free_disk_min_bytes": 0}}
    )


def draw(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(20, DIM))[rng.integers(20, size=count)] + 0.1 * rng.normal(size=(count, DIM))


@pytest.fixture
def engine(settings: Settings, weights: LinkageModel) -> Iterator[Engine]:
    """With an item that was moved twice, among others whose keys stand around its own."""
    with Engine.open(settings, weights, lambda: 5.0) as engine:
        with engine.store.snapshot():  # while one reads, pages are not used again: all is still there
            for at in range(3):
                names = [f"the key of nobody {i}" for i in range(400 * at, 400 * at + 400)]
                vectors = draw(at, 401)
                engine.upsert([*names, SECRET], vectors, payloads=[b'{"who": "somebody"}'] * 401)
                engine.delete(names[::3])
        yield engine


def forms_of(key: str, seeds: range) -> dict[str, bytes]:
    """All that must not be found: the key as it is and as JSON has it, and its vectors."""
    forms = {"key": key.encode(), "key in JSON": orjson.dumps(key)[1:-1]}
    for seed in seeds:
        vector = draw(seed, 401)[400]
        grid = quantize(vector[None])[0][0]
        unit = (grid / np.float32(2**14)).astype("<f4")
        forms |= {f"grid {seed}": grid.astype("<i2").tobytes(), f"float {seed}": unit.tobytes()}
    return forms


def found_in(folder: Path, forms: dict[str, bytes]) -> set[tuple[str, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {(path.name, name) for path in files for name, form in forms.items() if form in path.read_bytes()}


def test_nothing_is_left_of_an_erased_item(engine: Engine, settings: Settings) -> None:
    folder, forms = settings.store.path, forms_of(SECRET, range(3))
    engine.save()
    before = found_in(folder, forms)
    assert {name for _, name in before} >= {"key", "grid 0", "grid 1", "grid 2"}
    if settings.index.kind == "hnsw":
        assert {name for file, name in before if file.endswith(".hnsw")} == {f"float {i}" for i in range(3)}
    version, labels = engine.version, dict(zip(*engine.labels(), strict=True))
    gone = engine.erase(SECRET)
    assert (gone.found, gone.version) == (True, version + 1)
    assert gone.events >= 2
    assert not found_in(folder, forms)
    engine.upsert(["later"], draw(9, 1))
    engine.close()
    assert not found_in(folder, forms)
    with Engine.open(settings, engine.model) as again:
        assert again.labels()[0].count(SECRET) == 0
        assert set(again.labels()[0]) == {*labels, "later"} - {SECRET}
        assert sorted(again.assign(draw(1, 5)), key=str) is not None
    model = Path(folder).parent / "model"
    engine.model.save(model)
    report = check(settings.with_model(path=model), 0)
    assert report.findings == report.not_looked_at == []


def test_an_item_deleted_before_leaves_traces_that_go_too(engine: Engine, settings: Settings) -> None:
    engine.delete([SECRET])
    forms = forms_of(SECRET, range(3))
    assert found_in(settings.store.path, forms)
    assert not engine.erase(SECRET).found
    assert not found_in(settings.store.path, forms)


def test_dead_letters_of_the_item_go_too(tmp_path: Path, weights: LinkageModel) -> None:
    letters = [
        DeadLetter("3 dimensions", "topic 0 at 7", SECRET.encode(), b"raw", [("h", b"x")]),
        DeadLetter("broken", "topic 0 at 8", None, orjson.dumps({"key": SECRET})[:-1]),
        DeadLetter("broken", "topic 0 at 9", b"another", b"kept bytes", []),
    ]
    none = np.empty((0, DIM), np.int16)
    with Engine.open(settings_of(tmp_path / "store"), weights) as engine:
        engine.upsert([SECRET, "b"], draw(0, 2))
        engine.apply(Batch([], none, np.empty(0, np.int64), [], rejected=letters))
        engine.erase(SECRET)
        assert not found_in(tmp_path / "store", forms_of(SECRET, range(0)))
        events = [schema.unpack_event(body) for _, body in engine.store.rows("events")]
        assert [event for event in events if isinstance(event, DeadLetter)] == letters[2:]


READER = """
import sys
from engine.errors import NotFound
from engine.storage.reader import View
with View.open(sys.argv[1]) as view:
    for line in sys.stdin:
        try:
            print(view.item(line.strip())["version"], flush=True)
        except NotFound:
            print(-view.version, flush=True)
"""


def test_readers_in_other_processes_go_over_to_the_new_file(engine: Engine, settings: Settings) -> None:
    command = [warm_python.executable(), "-c", READER, str(settings.store.path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None

        def ask(key: str) -> int:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write(key + "\n")
            reader.stdin.flush()
            return int(reader.stdout.readline())

        assert ask(SECRET) == engine.version
        for at in range(3):
            engine.erase(SECRET)
            assert ask(SECRET) == -engine.version
            engine.upsert([f"later {at}"], draw(40 + at, 1))
            assert ask(f"later {at}") == engine.version
            engine.compact()
            assert ask(f"later {at}") == engine.version
            engine.upsert([SECRET], draw(0, 1))
        reader.stdin.close()


def test_what_is_not_published_yet_is_waited_for(engine: Engine, settings: Settings) -> None:
    engine.store.retain_from_version = 1
    with pytest.raises(StoreError, match="not published yet, so the log still has it; run it again"):
        engine.erase(SECRET, wait_s=0.1)
    assert SECRET not in engine
    publisher = threading.Timer(0.2, lambda: setattr(engine.store, "retain_from_version", engine.version + 1))
    publisher.start()
    assert not engine.erase(SECRET, wait_s=30).found
    publisher.join()
    assert not found_in(settings.store.path, forms_of(SECRET, range(3)))


def test_an_item_that_comes_back_meanwhile_is_not_taken_out_of_the_log(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_renew_index", lambda: engine.upsert([SECRET], draw(7, 1)))
    with pytest.raises(StoreError, match="came back meanwhile: stop its sender, then run it again"):
        engine.erase(SECRET)
    assert SECRET in engine
    assert SECRET.encode() in b"".join(body for _, body in engine.store.rows("events"))


def test_batches_go_on_while_an_item_is_erased(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes while the index is made anew is in it, what goes is not."""
    build = FreshIndex.build

    def meanwhile(fresh: FreshIndex) -> None:
        engine.upsert(["new 1", "new 2", "the key of nobody 1"], draw(20, 3))
        engine.delete(["the key of nobody 2", "the key of nobody 4"])
        build(fresh)

    monkeypatch.setattr(FreshIndex, "build", meanwhile)
    engine.erase(SECRET)
    base = engine.state.hierarchy.base
    rows = base.nodes.all_rows()
    found, _ = base.lists.index.search(rows, 5)
    assert set(found[found >= 0].tolist()) <= set(rows.tolist())
    engine.upsert(["newer"], draw(21, 1))
    assert not found_in(settings.store.path, forms_of(SECRET, range(3)))


def test_without_room_it_is_said_and_nothing_is_lost(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set(engine.labels()[0])
    object.__setattr__(engine.store._limits, "free_bytes", 1 << 60)
    with pytest.raises(StoreFull, match="make room"):
        engine.compact()
    object.__setattr__(engine.store._limits, "free_bytes", 0)
    assert engine.compact().after > 0
    assert set(engine.labels()[0]) == keys


def test_the_command_says_what_remains_elsewhere(shoal: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", emb=draw(0, 50), keys=[SECRET, *(f"k{i}" for i in range(49))])
    assert shoal("ingest", "in.npz", "--index", "exact").returncode == 0
    done = shoal("erase", SECRET)
    assert done.returncode == 0, done.stderr
    assert "the item is gone" in done.stdout
    assert "backups" in done.stdout
    assert not found_in(tmp_path / "shoal-store", forms_of(SECRET, range(0)))
    assert shoal("query", SECRET).returncode == 3
    assert f"there was no item '{SECRET}'" in shoal("erase", SECRET).stdout
    done = shoal("compact", "--json")
    assert orjson.loads(done.stdout)["after"] > 0
    assert shoal("erase", "x", "--store", "nowhere").returncode == 5


def test_what_is_published_is_erased_by_the_daemon_alone(shoal: Run, tmp_path: Path) -> None:
    """Without one, nothing of the log is forgotten either: it may not be out yet."""
    kafka = {
        "SHOAL_SOURCE__KAFKA__BOOTSTRAP": "localhost:1",
        "SHOAL_SOURCE__KAFKA__TOPIC": "items",
        "SHOAL_RETENTION__EVENTS_MAX_AGE_S": "0.001",
    }
    np.savez(tmp_path / "in.npz", emb=draw(0, 60), keys=[SECRET, *(f"k{i}" for i in range(59))])
    taken = shoal("ingest", "in.npz", "--index", "exact", env={**kafka, "SHOAL_BATCH__SIZE": "20"})
    assert taken.returncode == 0, taken.stderr
    with View.open(tmp_path / "shoal-store") as view:
        assert {place[0] for place, _ in view.unpublished((0, 0), 1000, 1 << 20).events} == {1, 2, 3}
    done = shoal("erase", SECRET, env=kafka)
    assert done.returncode == WriterAway.exit_code
    assert "start `shoal serve`" in done.stderr
    assert shoal("query", SECRET).returncode == 0
