"""Options that several commands share, and records of options.

A command may take frozen records and single arguments: each field of a record is an option, and carries it
as its annotation. `takes_records` shows such a function to Typer.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter, Signature, signature
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from engine.cli.console import home_path

if TYPE_CHECKING:
    from engine.config import Settings

# Options that override a setting, wherever they occur in a record of settings.
SETTINGS = {
    "store": "store.path",
    "model": "model.path",
    "index": "index.kind",
    "tau": "model.tau",
    "base_tau": "model.base_tau",
    "batch": "batch.size",
}


def takes_records(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with an option for each field of the frozen records that it takes."""
    own = signature(command, eval_str=True).parameters
    records: dict[str, Any] = {
        name: parameter.annotation for name, parameter in own.items() if is_dataclass(parameter.annotation)
    }
    shown = [own[name].replace(kind=Parameter.KEYWORD_ONLY) for name in own if name not in records]
    shown += [option for record in records.values() for option in _options_of(record)]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: record(**{field.name: given.pop(field.name) for field in fields(record)})
            for name, record in records.items()
        }
        command(**given, **made)

    run.__signature__ = Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def _options_of(record: Any) -> list[Parameter]:
    hints = get_type_hints(record, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(record)
    ]


def path_option(*flags: str, metavar: str, about: str) -> Any:
    """Return an option that is a path."""
    return typer.Option(*flags, metavar=metavar, parser=home_path, help=about)


def path_argument(metavar: str, about: str) -> Any:
    """Return an argument that is a path."""
    return typer.Argument(metavar=metavar, parser=home_path, help=about)


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[
    Path | None, path_option("-m", "--model", metavar="MODEL", about="Default: the one that ships.")
]
Index = Annotated[str | None, typer.Option("--index", metavar="hnsw|exact", help="Default: hnsw.")]
BatchSize = Annotated[int | None, typer.Option("--batch", metavar="N", help="Items in a batch.")]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Settings: a file of them, and options that override it (see SETTINGS)."""

    config: Annotated[
        Path | None, path_option("-c", "--config", metavar="FILE", about="Settings, a TOML file.")
    ] = None

    def settings(self) -> Settings:
        """Read the settings. Raises ConfigError."""
        from engine.config import load

        return load(self.config, self._flags())

    def beyond_file(self) -> dict[str, str | int | float]:
        """Return the flags that file and environment do not say as well: `{"model.tau": 0.6}`."""
        from engine.config import load

        given = {name: each for name, each in self._flags().items() if each is not None}
        said, own = load(self.config), self.settings()
        at = {name: attrgetter(name) for name in given if not name.startswith("store.")}
        return {name: given[name] for name, of in at.items() if of(own) != of(said)}

    def _flags(self) -> dict[str, str | int | float | None]:
        given = {SETTINGS[name]: getattr(self, name) for name in SETTINGS if hasattr(self, name)}
        return {name: os.fspath(each) if isinstance(each, Path) else each for name, each in given.items()}


@dataclass(frozen=True, slots=True)
class OfStore(Chosen):
    """A store and its settings."""

    store: Annotated[Path | None, path_option("--store", metavar="DIR", about="Default: ./shoal-store")] = (
        None
    )


@dataclass(frozen=True, slots=True)
class OfModel(OfStore):
    """A store and its settings, the model among them."""

    model: Model = None


@dataclass(frozen=True, slots=True)
class OfIndex(OfModel):
    """A store and its settings, model and index among them."""

    index: Index = None


@dataclass(frozen=True, slots=True)
class OfTaus(OfIndex):
    """A store and its settings, all that a rebuild may change among them."""

    tau: Annotated[
        float | None, typer.Option("--tau", help="Least probability that links, above level 0.")
    ] = None
    base_tau: Annotated[float | None, typer.Option("--base-tau", help="The same at level 0.")] = None
