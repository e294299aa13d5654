"""The demo, as people first meet it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

from tests.conftest import Run, command, environment

KEYS = {"items", "Fp", "Fb", "NMI", "ARI", "clusters", "singletons", "churn", "seconds"}


def test_the_demo_ends_with_a_summary(tmp_path: Path) -> None:
    """With the model that ships."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command("demo", "--exit", "--json"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = next(line for line in process.stderr if "clusters" in line)
    assert time.perf_counter() - start < 60
    assert "largest:" in first
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    figures = json.loads(out)
    assert set(figures) == KEYS
    assert figures["items"] == 1797
    assert figures["Fb"] >= 0.5, figures
    assert figures["ARI"] >= 0.9, figures
    assert list(tmp_path.iterdir()) == []


def test_the_demo_stays_until_it_is_stopped(tmp_path: Path, model: Path, shoal: Run) -> None:
    process = subprocess.Popen(
        command("demo", "--store", "digits", "--batch", "256"),
        cwd=tmp_path,
        env=environment({"SHOAL_MODEL__PATH": str(model), "PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    page = json.loads(shoal("clusters", "--store", "digits", "--json", "--limit", "1000").stdout)
    assert sum(cluster["size"] for cluster in page["clusters"]) == 1797
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert any(line.startswith("Fb") for line in lines)


def test_the_demo_stops_in_the_middle(tmp_path: Path, model: Path) -> None:
    process = subprocess.Popen(
        command("demo", "--batch", "4"),
        cwd=tmp_path,
        env=environment({"SHOAL_MODEL__PATH": str(model), "PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    next(line for line in process.stdout if "largest" in line)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.strip() == "shoal: stopped by SIGTERM before the stream ended."
