"""`shoal tune`: pairs out, judgements in, a tau that `shoal rebuild` takes; refusals change nothing."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from engine.model.adapter import Adapter
from engine.model.linkage import PRETRAINED
from tests.cli.test_cli import refused, told
from tests.conftest import Finished, Run

TOPICS, EACH, DIM = 6, 40, 16


@pytest.fixture
def shoal(shoal: Run) -> Run:
    """With the model that ships: a random one does not know what belongs together."""

    def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Finished:
        return shoal(*arguments, env={"SHOAL_MODEL__PATH": str(PRETRAINED), **(env or {})})

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six topics, each a cloud; labels are the topics, texts name the item."""
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.repeat(np.arange(TOPICS), EACH))
    centres = rng.normal(size=(TOPICS, DIM))
    emb = (centres[labels] + 0.5 * rng.normal(size=(len(labels), DIM))).astype(np.float32)
    keys = np.array([f"item {i}" for i in range(len(emb))])
    text = np.array([f'the "{i}", a text\nof two lines' for i in range(len(emb))])
    np.savez(tmp_path / "data.npz", emb=emb, labels=labels, keys=keys, text=text)
    return tmp_path / "data.npz"


def judge(data: Path, proposal: str, judged: Path) -> None:
    """Fill in a proposal by the labels."""
    with np.load(data) as found:
        label_of = dict(zip(found["keys"].tolist(), found["labels"].tolist(), strict=True))
    rows = list(csv.DictReader(proposal.splitlines(keepends=True)))
    for row in rows:
        row["same"] = "same" if label_of[row["key"]] == label_of[row["other"]] else "different"
    with judged.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_from_a_proposal_to_a_rebuild(shoal: Run, data: Path, tmp_path: Path) -> None:
    assert shoal("ingest", data, env={"SHOAL_MODEL__TAU": "0.97"}).returncode == 0
    proposal = shoal("tune", "--propose", "60")
    assert proposal.returncode == 0, proposal.stderr
    rows = list(csv.DictReader(proposal.stdout.splitlines(keepends=True)))
    assert list(rows[0])[:3] == ["key", "other", "same"]
    assert {row["same"] for row in rows} == {""}
    assert all("a text of two lines" in row["text"] for row in rows)
    refused(shoal("tune", "--pairs", write(tmp_path, proposal.stdout)), 3, "has no judgement")
    judge(data, proposal.stdout, tmp_path / "judged.csv")
    before = told(shoal("clusters", "--json"))
    found = told(shoal("tune", "--pairs", "judged.csv", "--json"))
    assert told(shoal("clusters", "--json")) == before
    assert found["current"] == 0.97
    assert found["chosen"] == found["best"] < 0.97
    assert 0 < found["gain_low"] <= found["gain"] <= found["gain_high"]
    assert len(found["taus"]) == 10
    printed = shoal("tune", "--pairs", "judged.csv")
    assert printed.returncode == 0, printed.stderr
    for words in (
        "Expected BCubed F",
        "current",
        "best",
        "expected gain",
        found["command"],
        "Level 0's own tau stays",
    ):
        assert words in printed.stdout
    assert found["told"] + found["at_all"] + found["at_none"] == 60
    more = found["at_all"] + found["at_none"]
    assert more > 0
    assert f"{more} judgements more do not tell taus apart: {found['at_all']} pairs" in printed.stdout
    words = shlex.split(found["command"])
    assert words[0] == "shoal"
    assert shoal(*words[1:]).returncode == 0
    after = shoal("tune", "--pairs", "judged.csv", "--json")
    assert after.returncode in (0, 13)
    assert json.loads(after.stdout)["current"] == found["chosen"]


def write(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_all_labels_give_what_evaluate_gives(shoal: Run, data: Path) -> None:
    """The payloads' labels, at the store's lists: BCubed F at each tau."""
    done = shoal("tune", data, "--taus", "0.2,0.9", "--json")
    found = {row["tau"]: row["Fb"] for row in json.loads(done.stdout)["taus"]}
    runs = told(shoal("evaluate", data, "--tau", "0.2,0.9", "--json"))["runs"]
    for run in runs:
        assert found[run["tau"]] == pytest.approx(run["Fb"], abs=0.02)


def test_labels_of_all_items_choose_level_0_too(shoal: Run, data: Path) -> None:
    """A level 0 that joins nothing: only another tau of its own helps, and the printed command applies it."""
    assert shoal("ingest", data, env={"SHOAL_MODEL__BASE_TAU": "0.99999"}).returncode == 0
    found = told(shoal("tune", "--json"))
    assert found["base"]["base_tau"] >= 0.5
    assert found["chosen"] == found["base"]["tau"]
    assert 0.05 < found["base"]["gain_low"] <= found["base"]["gain"]
    printed = shoal("tune")
    assert f"Level 0's own tau {found['base']['base_tau']:g}" in printed.stdout
    is_first = "instead of" in printed.stdout and found["sure"] >= 0.9
    assert ("a further gain of" if is_first else "over the present taus a gain of") in printed.stdout
    assert f"To apply both: {found['command']}" in printed.stdout
    done = shoal(*shlex.split(found["command"])[1:])
    assert done.returncode == 0, done.stderr
    flags = ("--tau", str(found["chosen"]), "--base-tau", str(found["base"]["base_tau"]))
    assert shoal("check", *flags).returncode == 0
    after = shoal("tune", "--json")
    again = json.loads(after.stdout)
    assert again["current"] == found["chosen"]
    assert again["base"] is None
    assert after.returncode == 13 or f"--base-tau {found['base']['base_tau']:g}" in again["command"]


def test_the_printed_command_keeps_the_settings_of_the_file(shoal: Run, data: Path, tmp_path: Path) -> None:
    """Without them a rebuild would change the levels and the name of the collection, too."""
    config = write(tmp_path, '[collection]\nname = "news"\n[model]\nmax_levels = 1\n', "my shoal.toml")
    other = {"SHOAL_MODEL__BASE_TAU": "0.99999"}
    assert shoal("ingest", data, "-c", config, env=other).returncode == 0
    found = told(shoal("tune", "-c", config, "--json", env=other))
    done = shoal(*shlex.split(found["command"])[1:])
    assert done.returncode == 0, done.stderr
    assert "max_levels" not in done.stdout
    assert "collection" not in done.stdout
    of_file = told(shoal("tune", data, "-c", config, "--json", env=other))
    assert shlex.split(of_file["command"])[-2:] == ["-c", str(config)]


def test_the_printed_command_sets_an_adapter_whose_path_has_a_blank(shoal: Run, data: Path) -> None:
    """A shell takes a variable that is quoted as a whole for a command."""
    adapter = data.parent / "my adapter.safetensors"
    Adapter({"direct": np.eye(DIM), "bias": np.zeros(DIM)}, 0, {}).save(adapter)
    given = {"SHOAL_MODEL__ADAPTER": str(adapter), "SHOAL_MODEL__BASE_TAU": "0.99999"}
    found = told(shoal("tune", data, "--json", env=given))
    assert found["command"].startswith(f"SHOAL_MODEL__ADAPTER='{adapter}' SHOAL_MODEL__TAU=")


def test_a_proposal_of_json_lines_is_read_back(shoal: Run, data: Path, tmp_path: Path) -> None:
    lines = shoal("tune", data, "--propose", "40", "--json").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    with np.load(data) as stored:
        label_of = dict(zip(stored["keys"].tolist(), stored["labels"].tolist(), strict=True))
    for record in records:
        record["same"] = label_of[record["key"]] == label_of[record["other"]]
        assert record["stands_for"] > 0
    judged = write(tmp_path, "\n".join(map(json.dumps, records)), "judged.jsonl")
    done = shoal("tune", data, "--pairs", judged, "--json")
    assert done.returncode in (0, 13), done.stderr
    assert json.loads(done.stdout)["told"] >= 30


def test_what_does_not_tell_ends_with_its_own_code(shoal: Run, data: Path, tmp_path: Path) -> None:
    proposal = shoal("tune", data, "--propose", "40").stdout
    rows = list(csv.DictReader(proposal.splitlines(keepends=True)))
    lines = [f"{row['key']},{row['other']},different" for row in rows]
    few = write(tmp_path, "\n".join(["key,other,same", *lines[:3]]), "few.csv")
    alike = write(tmp_path, "\n".join(["key,other,same", *lines]), "alike.csv")
    refused(shoal("tune", data, "--pairs", few), 13, " of 3 judged pairs tell taus apart", "--propose")
    refused(shoal("tune", data, "--pairs", alike), 13, "are different")


def test_bad_input_is_told(shoal: Run, data: Path, tmp_path: Path) -> None:
    refused(shoal("tune"), 5, "there is no store")
    refused(shoal("tune", "none.npz"), 3, "none.npz")
    (tmp_path / "no.jsonl").write_text('{"key": "a"}\n')
    assert "no.jsonl has no records that can be used" in shoal("tune", "no.jsonl").stderr
    refused(shoal("tune", data, "--taus", "0,0.5"), 3, "--taus")
    refused(shoal("tune", data, "--taus", "0.5,nan"), 3, "'nan'")
    refused(shoal("tune", data, "--pairs", "none.csv"), 3, "cannot be read")
    refused(shoal("tune", data, "--pairs", "a.csv", "--labels", "b.csv"), 3, "not both")
    refused(shoal("tune", data, "--label", "kind"), 3, "no payload has a field kind")
    unknown = write(tmp_path, "key,other,same\nitem 0,item x,same\n")
    refused(shoal("tune", data, "--pairs", unknown), 3, "there is no item 'item x'")
    torn = "key,other,same\nitem 0,item 1,same\nitem 1,item 2,same\nitem 0,item 2,different\n"
    refused(shoal("tune", data, "--pairs", write(tmp_path, torn)), 3, "contradict", "'item 1'")
