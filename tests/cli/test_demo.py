"""The demo, as people first meet it."""

from __future__ import annotations

import base64
import json
import signal
import socket
import struct
import subprocess
import zlib
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.conftest import Run, command, environment, warm_command

KEYS = {
    "items", "Fp", "Fp_precision", "Fp_recall", "Fb", "Fb_precision", "Fb_recall", "NMI", "ARI_labels", "ARI",
    "clusters", "singletons", "churn", "flapping", "seconds",
}  # fmt: skip


def test_the_demo_ends_with_a_summary(tmp_path: Path) -> None:
    """With the model that ships."""
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
    assert "largest:" in first
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    figures = json.loads(out)
    assert set(figures) == KEYS
    assert figures["items"] == 1797
    assert figures["Fb"] >= 0.5, figures
    assert figures["ARI"] >= 0.9, figures
    assert list(tmp_path.iterdir()) == []


def test_the_demo_serves_its_digits_until_it_is_stopped(tmp_path: Path, model: Path, shoal: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = subprocess.Popen(
            warm_command("demo", "--store", "digits", "--batch", "256", "--rate", "100000", threads=True),
            cwd=tmp_path,
            env=environment(
                {"SHOAL_MODEL__PATH": str(model), "SHOAL_API__PORT": port, "PYTHONUNBUFFERED": "1"}
            ),
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
    assert f"Port {port} is taken" in lines[0]
    url = lines[1].split()[-1]
    assert lines[1] == f"The page is at {url}\n"
    _look_around(url)
    page = json.loads(shoal("clusters", "--store", "digits", "--json", "--limit", "1000").stdout)
    assert sum(cluster["size"] for cluster in page["clusters"]) == 1797
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == ""
    assert any(line.startswith("Fb") for line in lines)


def _look_around(url: str) -> None:
    """The API and the page, and what only the writer can answer."""
    with httpx.Client(base_url=url, timeout=300) as api:
        item = api.get("/v1/items/7").json()
        assert item["payload"]["title"] == f"a handwritten {item['payload']['label']}"
        kind, _, data = item["payload"]["image"].partition(",")
        assert kind == "data:image/png;base64"
        pixels = _decode(base64.b64decode(data))
        assert pixels.shape == (8, 8)
        told = api.post("/v1/assign", json={"embedding": (pixels / 255 * 16).ravel().tolist()}).json()
        assert told["version"] == item["version"]
        why = api.get("/v1/items/7/explain").json()
        assert (why["key"], why["cluster"]) == ("7", item["cluster"])
        assert "shoal_items 1797.0" in api.get("/metrics").text
        assert "<title>" in api.get("/").text


def _decode(png: bytes) -> NDArray[np.uint8]:
    """Grey levels of a PNG without filters; every chunk's checksum has to hold."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, depth, color = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, color, list(chunks)) == (8, 0, [b"IHDR", b"IDAT", b"IEND"])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def test_the_demo_stops_in_the_middle(tmp_path: Path, model: Path) -> None:
    process = subprocess.Popen(
        warm_command("demo", "--batch", "4", "--rate", "50", threads=True),
        cwd=tmp_path,
        env=environment({"SHOAL_MODEL__PATH": str(model), "PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    next(line for line in process.stdout if "largest" in line)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.strip() == "shoal: stopped by SIGTERM before the stream ended."


def test_a_page_without_its_key_is_told_before_anything_begins(shoal: Run, tmp_path: Path) -> None:
    config = tmp_path / "shoal.toml"
    config.write_text('[api]\nkey_file = "none"\n')
    done = shoal("demo", "-c", config)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith("The API key in none cannot be read: No such file or directory.")
