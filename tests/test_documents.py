"""The README and the guides hold: the commands, settings, files and links that they name exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from engine import errors
from engine.cli.main import app
from engine.config import Settings, load, tomllib
from tests.conftest import ROOT
from tests.support.documents import DOCUMENTS, README, SHELL, Document

WORDS_MAX = 900  # of the README
PICTURES_MAX = 400_000  # bytes, of all that it shows
EXAMPLES = {  # settings that have no default, or are shown otherwise
    ("collection", "dim"), ("model", "path"), ("model", "adapter"), ("model", "tau"), ("model", "base_tau"),
    ("model", "max_levels"), ("source", "http"),
    ("batch", "size"), ("retention", "max_age_s"), ("retention", "max_items"), ("api", "key_file"),
}  # fmt: skip
NAMES = [document.file.name for document in DOCUMENTS]


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
    from engine.config import Settings
    from engine.config_problems import keys_of

    *section, name = path
    return name in [key.lower() if name.islower() else key for key in keys_of(Settings, section)]


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


def test_shown_defaults_are_the_defaults(tmp_path: Path) -> None:
    """In the guide of settings, but for values that are examples."""
    (block,) = (d.blocks("toml")[0] for d in DOCUMENTS if d.file.name == "settings.md")
    shown = tomllib.loads(block.text)
    defaults = Settings().model_dump()
    for section, values in shown.items():
        for name, value in values.items():
            if (section, name) not in EXAMPLES:
                assert str(value) == str(defaults[section][name]) or value == defaults[section][name], name


def test_every_exit_code_is_listed() -> None:
    """In the guide of operations; those of signals stand in one row."""
    (text,) = (document.text for document in DOCUMENTS if document.file.name == "operations.md")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    used = {kind.exit_code for kind in kinds if issubclass(kind, errors.ShoalError)}
    assert used <= listed
