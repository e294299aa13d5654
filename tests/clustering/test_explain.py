"""Why an item is where it is: every link, refusal and level told must follow from what is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from engine.clustering import explain
from engine.clustering.explain import BELOW_TAU, LESS_PROBABLE, LOWER_DENSITY, PARENT
from engine.collection.collection import Engine
from engine.config import Settings
from engine.errors import InputError, NotFound
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread")
SEED = 4


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(12, 8))
    path = tmp_path_factory.mktemp("explain")
    settings = Settings.model_validate({"store": {"path": path}, "index": {"kind": "exact"}})
    with Engine.open(settings, random_model(7)) as opened:
        points = centres[rng.integers(0, 12, 240)] + 0.2 * rng.normal(size=(240, 8))
        opened.upsert([f"i{row}" for row in range(240)], points)
        opened.delete([f"i{row}" for row in range(40)])
        yield opened


@pytest.fixture(scope="module")
def told(engine: Engine) -> dict[str, Any]:
    return {key: engine.explain(key) for key in engine}


def test_the_last_peak_names_the_cluster(engine: Engine, told: dict[str, Any]) -> None:
    peaks = {}
    for key, cluster in zip(*engine.labels(), strict=True):
        answer = told[key]
        assert (answer["cluster"], answer["path"][0]) == (cluster, cluster)
        assert answer["version"] == engine.version
        assert [level["level"] for level in answer["levels"]] == list(range(len(answer["levels"])))
        peaks[answer["levels"][-1]["chain"][-1]["key"]] = int(cluster)
    assert len(set(peaks.values())) == len(peaks) == len(set(engine.labels()[1].tolist()))


def test_chains_hang_together(told: dict[str, Any]) -> None:
    longest = 0
    for key, answer in told.items():
        node = key
        for level in answer["levels"]:
            chain = level["chain"]
            assert level["key"] == node == chain[0]["key"]
            assert level["chain_links"] == len(chain) - 1
            assert chain[-1]["linkage"] is None
            assert all(link["linkage"] > answer["tau"] for link in chain[:-1])
            densities = [link["density"] for link in chain]
            assert densities == sorted(densities)
            node = chain[-1]["key"]
            longest = max(longest, level["chain_links"])
    assert longest >= 2, SEED


def test_a_link_is_to_the_most_probable_denser_neighbour(told: dict[str, Any]) -> None:
    seen = set()
    for answer in told.values():
        for level in answer["levels"]:
            followed = [n for n in level["neighbors"] if n["verdict"] == PARENT]
            assert [n["key"] for n in followed] == [link["key"] for link in level["chain"][1:2]]
            for near in level["neighbors"]:
                seen.add(near["verdict"])
                allowed = near["linkage"] > answer["tau"]
                if near["verdict"] == BELOW_TAU:
                    assert not allowed
                elif near["verdict"] == LOWER_DENSITY:
                    assert allowed
                    assert near["density"] <= level["density"]
                else:
                    assert allowed
                    assert near["density"] >= level["density"]
                    assert followed[0]["linkage"] >= near["linkage"]
    assert seen == {PARENT, BELOW_TAU, LOWER_DENSITY, LESS_PROBABLE}, SEED


def test_the_best_refused_is_named(told: dict[str, Any]) -> None:
    for answer in told.values():
        for level in answer["levels"]:
            kept_from = [n for n in level["neighbors"] if n["verdict"] in (BELOW_TAU, LOWER_DENSITY)]
            most = max((n["linkage"] for n in kept_from), default=None)
            assert (level["refused"] or {"linkage": None})["linkage"] == most


def test_density_is_what_the_neighbours_give(told: dict[str, Any]) -> None:
    for answer in told.values():
        for level in answer["levels"]:
            near = level["neighbors"]
            mean = sum(n["similarity"] * (2 * n["linkage"] - 1) for n in near) / len(near)
            assert level["density"] == pytest.approx(mean, abs=1e-6)


def test_a_coarser_level_is_left_out_on_request(engine: Engine, told: dict[str, Any]) -> None:
    key = next(key for key, answer in told.items() if len(answer["levels"]) > 1)
    answer = engine.explain(key, 0)
    assert answer["levels"] == told[key]["levels"][:1]
    assert orjson.loads(orjson.dumps(answer)) == answer


def test_a_long_chain_is_shortened(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "CHAIN_MAX", 2)
    answers = [engine.explain(key) for key in engine.labels()[0]]
    level = max((a["levels"][0] for a in answers), key=lambda found: found["chain_links"])
    assert len(level["chain"]) == 2
    assert level["chain_links"] > 1
    assert level["chain"][-1]["linkage"] is None


def test_unknown_and_malformed_keys(engine: Engine, tmp_path: Path) -> None:
    for gone in ("i0", "nobody"):
        with pytest.raises(NotFound, match=gone):
            engine.explain(gone)
    with pytest.raises(InputError, match="511"):
        engine.explain("x" * 512)
    settings = Settings.model_validate({"store": {"path": tmp_path}})
    with Engine.open(settings, random_model(7)) as empty, pytest.raises(NotFound):
        empty.explain("a")


def test_the_first_item_has_nobody(tmp_path: Path) -> None:
    settings = Settings.model_validate({"store": {"path": tmp_path}, "index": {"kind": "exact"}})
    with Engine.open(settings, random_model(7)) as alone:
        alone.upsert(["a"], [[1.0, 2.0]])
        (level,) = alone.explain("a")["levels"]
        assert (level["neighbors"], level["refused"], level["chain_links"]) == ([], None, 0)
