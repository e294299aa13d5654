"""The floor plan: which package may import which, read from the source. `engine/ARCHITECTURE.md` draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# The contracts are the modules beside the packages; every package may import them.
CONTRACTS = "contracts"
MAY_IMPORT = {
    CONTRACTS: set(),
    "system": set(),
    "index": {"system"},
    "model": {"system"},
    "clustering": {"system", "index"},
    "storage": {"system"},
    "collection": {"system", "index", "model", "clustering", "storage"},
    "daemon": {"system", "model", "storage", "collection"},
    "api": {"system", "storage", "daemon"},
    "evaluation": {"system", "index", "model", "clustering", "collection", "connectors"},
    "training": {"system", "index", "model", "clustering", "evaluation", "connectors"},
    "learning": {"system", "model", "evaluation", "connectors"},
    "finetuning": {"system", "model", "evaluation", "training", "connectors"},
    "cli": {
        "system",
        "storage",
        "collection",
        "daemon",
        "api",
        "evaluation",
        "training",
        "learning",
        "finetuning",
        "connectors",
    },
    "connectors": set(),
}
FRONT = {"engine/__init__.py": {"system", "collection"}, "engine/__main__.py": {"cli"}}


def package_of(module: str) -> str:
    """The package of a dotted module of ours: `engine.storage.store` is in `storage`."""
    top, _, rest = module.partition(".")
    if top == "connectors":
        return top
    name = rest.partition(".")[0]
    return name if name in MAY_IMPORT else CONTRACTS


def imports(source: str) -> Iterator[str]:
    """Every module of ours that a file names, also inside functions and for the type checker only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in ("engine", "connectors"))


def wrong_imports(path: str, source: str) -> list[str]:
    """What a file imports and its package may not, as sentences."""
    own = package_of(path.removesuffix(".py").replace("/", "."))
    allowed = MAY_IMPORT[own] | {own, CONTRACTS} | FRONT.get(path, set())
    return [f"{path} imports {name}" for name in imports(source) if package_of(name) not in allowed]


def sources() -> list[str]:
    found = [*(ROOT / "engine").rglob("*.py"), *(ROOT / "connectors").rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def test_every_import_is_allowed() -> None:
    wrong = [each for path in sources() for each in wrong_imports(path, (ROOT / path).read_text("utf-8"))]
    assert not wrong, "\n".join(wrong)


def test_the_packages_form_a_hierarchy() -> None:
    seen: set[str] = set()
    for name, below in MAY_IMPORT.items():
        assert below <= seen | {"connectors"}, f"{name} may import only what stands above it in the table"
        seen.add(name)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("engine/storage/store.py", "from engine.clustering.lineage import follow"),
        ("engine/clustering/state.py", "from engine.storage import schema"),
        ("engine/config.py", "from engine.system import files"),
        ("connectors/kafka/sink.py", "from engine.storage.eventlog import read"),
        ("connectors/http.py", "def f():\n    import engine.daemon.control"),
        ("engine/api/app.py", "from engine.collection.collection import Engine"),
        ("engine/model/linkage.py", "if TYPE_CHECKING:\n    from engine.clustering.state import State"),
    ],
)
def test_a_planted_import_is_found(path: str, line: str) -> None:
    assert (ROOT / path).exists()
    assert wrong_imports(path, line)


@pytest.mark.parametrize("package", sorted(set(MAY_IMPORT) - {CONTRACTS}))
def test_each_package_says_what_is_in_it(package: str) -> None:
    """Three sentences: what is in it, what it may import, where to begin reading."""
    folder = ROOT / package if package == "connectors" else ROOT / "engine" / package
    if not folder.exists():
        pytest.fail(f"{folder} is in the table and not on disk")
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
    assert docstring, package
    assert "import" in docstring, package
    assert "Begin" in docstring, package


def test_no_folder_is_a_hall() -> None:
    folders: dict[Path, int] = {}
    for path in sources():
        folders[Path(path).parent] = folders.get(Path(path).parent, 0) + 1
    crowded = {str(folder): count for folder, count in folders.items() if count > 20}
    assert not crowded
