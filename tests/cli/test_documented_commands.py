"""What the README and the guides say to run does run: shell, Python, requests to a daemon, Kafka."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.conftest import environment
from tests.support import warm_python
from tests.support.documents import DOCUMENTS, SHELL, Block, Document
from tests.support.live_api import plain_http
from tests.support.ports import free_ports
from tests.support.waiting import until

START_S = 180.0
FOREVER = " -N "  # a curl that streams


def blocks(mark: str, *languages: str) -> list[Block]:
    return [block for document in DOCUMENTS for block in document.blocks(*languages) if mark in block.marks]


RUN = [document for document in DOCUMENTS if any("run" in block.marks for block in document.blocks(*SHELL))]


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """Where blocks run: two files of digits, `shoal` on the path."""
    digits = load_digits()
    some = digits.data[:120].astype(np.float32)
    keys = np.array(["shop/shoes/7", *(f"articles:{row}" for row in range(1, 120))])
    np.savez(tmp_path / "articles.npz", emb=some, text=digits.target[:120].astype(str), keys=keys)
    np.savez(tmp_path / "labelled.npz", emb=digits.data[:600].astype(np.float32), labels=digits.target[:600])
    command = tmp_path / "bin/shoal"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{warm_python.executable()}" -m engine "$@"\n')
    command.chmod(0o755)
    (tmp_path / "bin/.curlrc").write_text("fail\nsilent\nshow-error\nmax-time = 120\n")
    return tmp_path


def variables(folder: Path, model: Path, **more: str) -> dict[str, str]:
    return environment(
        {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CURL_HOME": str(folder / "bin"),
            "SHOAL_API__PORT": "0",
            "SHOAL_MODEL__PATH": str(model),
            **more,
        }
    )


def run(script: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("document", RUN, ids=lambda document: document.file.name)
def test_shell_blocks_run(document: Document, folder: Path, model: Path) -> None:
    """Those marked `run`, in the order of the document, in one folder."""
    script = "\n".join(block.text for block in document.blocks(*SHELL) if "run" in block.marks)
    if "shoal ingest" not in script:
        script = f"shoal ingest articles.npz\n{script}"
    (folder / "articles.npz").rename(folder / "a.npz")
    with np.load(folder / "a.npz") as found:  # keys by row, as the documents say
        np.savez(folder / "articles.npz", emb=found["emb"], text=found["text"])
    done = run(script, folder, variables(folder, model))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", blocks("run", "python"), ids=lambda block: block.place)
def test_python_blocks_run(block: Block, folder: Path, model: Path) -> None:
    done = subprocess.run(
        [warm_python.executable(), "-c", block.text],
        cwd=folder, env=variables(folder, model), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def daemon(folder: Path, model: Path) -> Iterator[str]:
    """A daemon that takes records over HTTP and has the digits; its address."""
    env = variables(folder, model, SHOAL_SOURCE__HTTP="true")
    assert run("shoal ingest articles.npz", folder, env).returncode == 0
    [port] = map(str, free_ports(1))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["shoal", "serve"], cwd=folder, env=env | {"SHOAL_API__PORT": port}, stderr=log
        )
    try:
        until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)


def until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return http.get(f"{url}/readyz").is_success
        except httpx.HTTPError:
            return False

    with plain_http() as http:
        until(answers, START_S)


def test_requests_are_answered(daemon: str, folder: Path, model: Path) -> None:
    """The blocks marked `daemon`: requests with curl, and from Python."""
    (folder / "items.jsonl").write_text(f'{{"key": "b", "embedding": {[1.0] * 64}}}\n')
    largest = httpx.get(f"http://{daemon}/v1/clusters").json()["clusters"][0]["cluster"]
    env = variables(folder, model)
    vector = str([float(value) for value in range(64)])

    def fitted(text: str) -> str:
        text = text.replace("localhost:8000", daemon).replace("127.0.0.1:8000", daemon)
        text = text.replace("after=17-0", "after=1-0")
        return text.replace("clusters/42", f"clusters/{largest}").replace("[0.1, 0.9]", vector)

    for block in blocks("daemon", *SHELL):
        for line in block.commands():
            done = run(fitted(line).replace(FOREVER, " -N -m 2 "), folder, env)
            assert done.returncode == (28 if FOREVER in line else 0), f"{line}: {done.stderr}"
    for block in blocks("daemon", "python"):
        given = f"import numpy as np\nkey, rows = 'none', np.ones((1, 64))\n{fitted(block.text)}        break"
        done = subprocess.run(
            [warm_python.executable(), "-c", given], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0 or "ReadTimeout" in done.stderr, done.stderr


@pytest.mark.parametrize("block", blocks("kafka", "python"), ids=lambda block: block.place)
def test_kafka_blocks_run(block: Block, broker: Any, tmp_path: Path, model: Path) -> None:
    """Its first line of output comes from the daemon, by way of the broker."""
    from tests.broker.daemon import Daemon
    from tests.broker.topics import Topics

    topic = Topics(broker.bootstrap).make(name=f"embeddings-{uuid.uuid4().hex}")
    daemon = Daemon(tmp_path, broker.bootstrap, topic, warm_python.executable(), model__path=model)
    daemon.start()
    text = block.text.replace("localhost:9092", broker.bootstrap).replace('"embeddings', f'"{topic}')
    assert topic in text
    try:
        with subprocess.Popen(
            [warm_python.executable(), "-u", "-W", "ignore", "-c", text], stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout
            line = client.stdout.readline()
            client.kill()
    finally:
        daemon.stop()
    assert line.startswith("b'a' b'{"), line
