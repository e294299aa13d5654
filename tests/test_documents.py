"""The README and the guides hold: their commands run, their settings, files and links exist."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
from sklearn.datasets import load_digits

from engine import errors
from engine.cli.main import app
from engine.config import Settings, load, tomllib
from tests.conftest import ROOT, environment
from tests.documents import DOCUMENTS, README, SHELL, Block, Document

WORDS_MAX = 900  # of the README
PICTURES_MAX = 400_000  # bytes, of all that it shows
START_S = 180.0
EXAMPLES = {  # settings that have no default, or are shown otherwise
    ("collection", "dim"), ("model", "path"), ("model", "tau"), ("model", "max_levels"), ("source", "http"),
    ("batch", "size"), ("retention", "max_age_s"), ("retention", "max_items"), ("api", "key_file"),
}  # fmt: skip
FOREVER = " -N "  # a curl that streams
NAMES = [document.file.name for document in DOCUMENTS]


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
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m engine "$@"\n')
    command.chmod(0o755)
    (tmp_path / "bin/.curlrc").write_text("fail\nsilent\nshow-error\nmax-time = 20\n")
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


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= WORDS_MAX


def test_the_pictures_are_small() -> None:
    pictures = DOCUMENTS[0].pictures()
    assert len(pictures) == 2  # light, dark
    assert sum(picture.stat().st_size for picture in pictures) <= PICTURES_MAX


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Document) -> None:
    for link in document.links():
        if link.startswith(("https:", "http:")):
            continue
        path, _, anchor = link.partition("#")
        file = document.file.parent / path if path else document.file
        assert file.exists(), link
        assert not anchor or anchor in Document.read(file).anchors(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_commands_exist(document: Document) -> None:
    """Each `shoal ...` has a name and flags that the command line knows."""
    group: Any = typer.main.get_command(app)
    for words in document.commands():
        parse(group, words)


def parse(group: Any, words: list[str]) -> None:
    """Raises for a command or a flag that does not exist; values are not looked at."""
    if words == ["--help"]:
        return
    assert words[0] in group.commands, f"there is no command shoal {words[0]}"
    command = group.commands[words[0]]
    context = command.make_context(words[0], [], resilient_parsing=True)
    context.resilient_parsing = False
    command.make_parser(context).parse_args(words[1:])


def test_a_flag_that_does_not_exist_is_found() -> None:
    group: Any = typer.main.get_command(app)
    with pytest.raises(Exception, match="--sideways"):
        parse(group, ["clusters", "--sideways"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_settings_exist(document: Document, tmp_path: Path) -> None:
    """In TOML blocks, and named in sentences as `[api] port` or `SHOAL_API__PORT`."""
    (tmp_path / "keys").write_text("0123456789abcdef\n")
    for block in document.blocks("toml"):
        file = tmp_path / "shoal.toml"
        file.write_text(block.text)
        load(file)
    for code in document.inline():
        for section, name in re.findall(r"\[([a-z.]+)\] (\w+)", code):
            assert has_setting([*section.split("."), name]), code
        for variable in re.findall(r"SHOAL_(\w+__\w+)", code):
            assert has_setting(variable.lower().split("__")), code


def has_setting(path: list[str]) -> bool:
    from engine.config import _keys

    *section, name = path
    return name in [key.lower() if name.islower() else key for key in _keys(section)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_files_modules_and_targets_exist(document: Document) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = [line for block in document.blocks(*SHELL) for line in block.commands()]
    for code in document.inline() + lines:
        for path in re.findall(r"^(?:engine|tests|connectors|benchmarks)/[\w./-]+", code):
            assert (ROOT / path).exists(), code
        for module in re.findall(r"python -m ((?:benchmarks|tests)\.\w+(?:\.\w+)*)(?!\w|\.\.)", code):
            assert module.endswith("bench_") or importlib.util.find_spec(module), code
        for target in re.findall(r"^make ([a-z][\w-]*)", code):
            assert target in targets, code
        for name in re.findall(r"\bbench_[a-z]+\b", code):
            assert (ROOT / f"benchmarks/{name}.py").exists(), code


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
        [sys.executable, "-c", block.text],
        cwd=folder, env=variables(folder, model), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def daemon(folder: Path, model: Path) -> Iterator[str]:
    """A daemon that takes records over HTTP and has the digits; its address."""
    env = variables(folder, model, SHOAL_SOURCE__HTTP="true")
    assert run("shoal ingest articles.npz", folder, env).returncode == 0
    port = str(free_port())
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["shoal", "serve"], cwd=folder, env=env | {"SHOAL_API__PORT": port}, stderr=log
        )
    try:
        until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text())


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
            [sys.executable, "-c", given], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 or "ReadTimeout" in done.stderr, done.stderr


@pytest.mark.parametrize("block", blocks("kafka", "python"), ids=lambda block: block.place)
def test_kafka_blocks_run(block: Block, broker: Any, tmp_path: Path, model: Path) -> None:
    """Its first line of output comes from the daemon, by way of the broker."""
    from tests.broker.daemon import Daemon
    from tests.broker.topics import Topics

    topic = Topics(broker.bootstrap).make(name=f"embeddings-{uuid.uuid4().hex}")
    daemon = Daemon(tmp_path, broker.bootstrap, topic, model__path=model)
    daemon.start()
    text = block.text.replace("localhost:9092", broker.bootstrap).replace('"embeddings', f'"{topic}')
    assert topic in text
    try:
        with subprocess.Popen(
            [sys.executable, "-u", "-W", "ignore", "-c", text], stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout
            line = client.stdout.readline()
            client.kill()
    finally:
        daemon.stop()
    assert line.startswith("b'a' b'{"), line


def test_shown_defaults_are_the_defaults(tmp_path: Path) -> None:
    """In the guide of settings, but for values that are examples."""
    (block,) = (d.blocks("toml")[0] for d in DOCUMENTS if d.file.name == "settings.md")
    shown = tomllib.loads(block.text)
    defaults = Settings().model_dump()
    for section, values in shown.items():
        for name, value in values.items():
            if (section, name) not in EXAMPLES:
                assert value == defaults[section][name] or Path(value) == defaults[section][name], name


def test_every_exit_code_is_listed() -> None:
    """In the guide of operations; those of signals stand in one row."""
    (text,) = (document.text for document in DOCUMENTS if document.file.name == "operations.md")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    used = {kind.exit_code for kind in kinds if issubclass(kind, errors.ShoalError)}
    assert used <= listed
