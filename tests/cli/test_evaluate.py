"""`shoal evaluate`: levels, taus, the classes that cost most, pictures, and files of any format."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.cli.evaluate import _unevenness
from tests.cli.test_cli import data, mixture, refused, told  # noqa: F401
from tests.conftest import Run


def test_each_tau_is_what_it_is_alone(shoal: Run, data: Path) -> None:  # noqa: F811
    runs = told(shoal("evaluate", data, "--tau", "0.2,0.5, 0.9", "--levels", "--json"))["runs"]
    assert [run["tau"] for run in runs] == [0.2, 0.5, 0.9]
    assert len({run["clusters"] for run in runs}) > 1
    for run in runs:
        assert [round(run["levels"][-1][name], 9) for name in ("Fb", "NMI")] == [
            round(run[name], 9) for name in ("Fb", "NMI")
        ]
        assert 2 * run["Fb_precision"] * run["Fb_recall"] / (run["Fb_precision"] + run["Fb_recall"]) == (
            pytest.approx(run["Fb"])
        )
        clusters = [level["clusters"] for level in run["levels"]]
        assert clusters == sorted(clusters, reverse=True)
    alone = told(shoal("evaluate", data, "--tau", "0.9", "--index", "exact", "--json"))
    assert {**alone, "seconds": 0} == {k: v for k, v in runs[2].items() if k != "levels"} | {"seconds": 0}


def test_what_people_read(shoal: Run, data: Path, tmp_path: Path) -> None:  # noqa: F811
    done = shoal("evaluate", data, "--tau", "0.1,0.97", "--levels", "--stream", "--png", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    for words in ("At each tau:", "the best Fb:", "Fb_precision", "After each level", "cost most", "churn"):
        assert words in done.stdout
    assert "\nAfter each level" in done.stdout
    assert "\\n" not in done.stdout  # a title is a line of its own
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    for tau, words in (("0.0", "lumps of several classes"), ("0.99", "in pieces")):
        assert words in shoal("evaluate", data, "--tau", tau).stdout


@pytest.mark.parametrize(
    ("precision", "recall", "taus", "said"),
    [
        (0.9, 0.5, [0.5], "Classes are in pieces: a lower tau joins more."),
        (0.9, 0.5, [0.5, 0.9], "Classes are in pieces: a lower tau joins more."),
        (0.9, 0.5, [0.1, 0.3, 0.5], "a lower tau joins more, but 0.3 is no better in all."),
        (0.5, 0.9, [0.2, 0.5, 0.8, 0.99], "a higher tau keeps more apart, but 0.8 is no better in all."),
        (0.9, 0.9, [0.5], ""),
    ],
)
def test_what_is_advised_was_not_found_to_be_no_better(
    precision: float, recall: float, taus: list[float], said: str
) -> None:
    figures = SimpleNamespace(Fb_precision=precision, Fb_recall=recall)
    best: Any = SimpleNamespace(figures=figures, tau=0.5)
    found = _unevenness(best, taus)
    assert said in found if said else not found


def test_files_of_other_formats(shoal: Run, tmp_path: Path) -> None:
    emb, labels = mixture()
    lines = [
        json.dumps({"key": str(at), "embedding": one.tolist(), "label": f"class {label}"})
        for at, (one, label) in enumerate(zip(emb, labels, strict=True))
    ]
    (tmp_path / "data.jsonl").write_text(
        "\n".join([*lines[:-1], '{"key": "x", "embedding": [NaN], "label": 1}'])
    )
    done = shoal("evaluate", "data.jsonl", "--json")
    found = told(done)
    assert found["items"] == 299
    assert "left out: data.jsonl, line 300: " in done.stderr
    assert "left out 1 record that cannot be used" in done.stderr
    (tmp_path / "bare.jsonl").write_text('{"key": "x", "embedding": [1, 2]}\n')
    refused(shoal("evaluate", "bare.jsonl"), 3, "line 1 has no label")
    assert found["worst"][0]["class"].startswith("class ")
    assert sum(piece["items"] for piece in found["worst"][0]["pieces"]) <= found["worst"][0]["items"]


def test_what_makes_no_sense_is_refused(shoal: Run, data: Path) -> None:  # noqa: F811
    refused(shoal("evaluate", data, "--tau", "0.3,high"), 3, "--tau", "'high'")
    refused(shoal("evaluate", data, "--tau", "1.0"), 3, "--tau", "'1.0'")
    refused(shoal("evaluate", data, "--tau", ""), 3, "--tau", "''")
    refused(shoal("evaluate", data, "--png", "no/a.png"), 3, "no is not a folder")


@pytest.mark.parametrize("command", ["evaluate", "tune", "opis"])
def test_the_label_of_noise_is_told(shoal: Run, tmp_path: Path, command: str) -> None:
    emb, labels = mixture()
    words = "the label -1 of 1 item is taken for a class of its own"
    labels[0] = -1
    np.savez(tmp_path / "noise.npz", emb=emb, labels=labels)
    assert words in shoal(command, "noise.npz").stderr
    np.savez(tmp_path / "signs.npz", emb=emb, labels=np.where(labels > 0, 1, -1))
    assert "the label -1" not in shoal(command, "signs.npz").stderr


def test_no_heading_wraps_in_a_pipe(shoal: Run, data: Path) -> None:  # noqa: F811
    """Nor where the tables of a terminal of this width would."""
    table = shoal("evaluate", data, "--tau", "0.3,0.5").stdout.split("At each tau:\n")[1]
    names = ("tau", "Fb", "Fb_precision", "Fb_recall", "Fp", "NMI", "ARI_labels", "clusters", "singletons")
    assert table.splitlines()[0].split() == [*names, "churn", "seconds"]


def test_of_several_rows_of_a_key_the_last_one_counts(shoal: Run, data: Path, tmp_path: Path) -> None:  # noqa: F811
    """As an ingest of the file has it."""
    columns = dict(np.load(data))
    earlier = {**columns, "emb": -columns["emb"], "labels": columns["labels"][::-1]}
    joined = {name: np.concatenate([earlier[name][:100], columns[name]]) for name in columns}
    np.savez(tmp_path / "again.npz", **joined)
    for command in (("evaluate",), ("opis",)):
        done = shoal(*command, tmp_path / "again.npz", "--json")
        assert "left out 100 records: a later one has the same key, and counts" in done.stderr
        assert {**told(done), "seconds": 0} == {**told(shoal(*command, data, "--json")), "seconds": 0}
    done = shoal("tune", tmp_path / "again.npz", "--propose", "3")
    assert "left out 100 records: a later one has the same key, and counts" in done.stderr
    np.savez(tmp_path / "odd.npz", **{**columns, "keys": columns["keys"][:7]})
    refused(shoal("opis", tmp_path / "odd.npz"), 3, "odd.npz: the keys must be 300, one a row of emb")
