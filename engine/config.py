"""Settings: flags before environment before file before what is written here. Units come last in names.

A file is TOML with the sections below. In the environment `SHOAL_INDEX__EF=100` sets `[index] ef`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from engine.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "SHOAL_"
ENV_DELIMITER = "__"
LMDB_KEY_MAX_BYTES = 511  # what LMDB takes
BULK_BATCH = 2048  # items a batch where throughput counts: files
STREAM_BATCH = 256  # items a batch where the answer is awaited: streams

Value = str | int | float | bool | None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class CollectionSettings(_Section):
    """What is clustered."""

    name: str = Field("shoal", min_length=1, max_length=200)
    dim: int | None = Field(None, ge=1, le=16_384)  # None: the first valid vector's


class StoreSettings(_Section):
    path: Path = Path("shoal-store")


class IndexSettings(_Section):
    """Names are hnswlib's: links per node, and candidates kept while inserting and while searching."""

    kind: Literal["hnsw", "exact"] = "hnsw"
    M: int = Field(16, ge=2, le=128)
    ef_construction: int = Field(200, ge=10, le=10_000)
    ef: int = Field(200, ge=10, le=10_000)


class ModelSettings(_Section):
    """None: what the model's card says, or the model that ships with Shoal."""

    path: Path | None = None
    tau: float | None = Field(None, ge=0, lt=1)  # least linkage probability that links
    k: int | None = Field(None, ge=1, le=64)  # neighbours in a list
    max_levels: int | None = Field(None, ge=1, le=32)


class BatchSettings(_Section):
    """None: 2,048 for files, 256 for streams."""

    size: int | None = Field(None, ge=1, le=65_536)  # items


class RetentionSettings(_Section):
    """How long the event log, and with it the memory of ended clusters, is kept."""

    events_max_age_s: float = Field(7 * 86_400.0, gt=0)
    events_max_bytes: int = Field(2**30, ge=2**20)


class BoundsSettings(_Section):
    """Limits on what comes in and on what the process may take."""

    key_max_bytes: int = Field(LMDB_KEY_MAX_BYTES, ge=1, le=LMDB_KEY_MAX_BYTES)
    payload_max_bytes: int = Field(2**18, ge=0, le=2**30)
    record_max_bytes: int = Field(2**20, ge=2**10, le=2**30)  # one line of a .jsonl file
    map_size_bytes: int = Field(2**36, ge=2**20)  # address space set aside for LMDB; it grows when full
    free_disk_min_bytes: int = Field(2**26, ge=0)  # refuse to write with less
    snapshot_items: int = Field(20_000, ge=1)  # inserts between two snapshots of the index, at least
    slack: int = Field(6, ge=0, le=64)  # neighbours known beyond the k in use
    search_width: int = Field(100, ge=16, le=10_000)  # hnsw: candidates asked for each new item
    holders_max: int = Field(64, ge=0, le=10_000)  # hnsw: list holders offered a new item, per neighbour


class Settings(BaseSettings):
    """All settings; frozen. `Settings()` reads the environment too, `load` also a file and flags."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        extra="forbid",
        frozen=True,
        validate_default=True,
    )

    collection: CollectionSettings = CollectionSettings()
    store: StoreSettings = StoreSettings()
    index: IndexSettings = IndexSettings()
    model: ModelSettings = ModelSettings()
    batch: BatchSettings = BatchSettings()
    retention: RetentionSettings = RetentionSettings()
    bounds: BoundsSettings = BoundsSettings()


def load(path: Path | None = None, flags: Mapping[str, Value] | None = None) -> Settings:
    """Settings of a file (None: no file), the environment and flags, `{"index.kind": "exact"}`.

    A flag of None is one that was not given. Raises `ConfigError` naming key, value and origin.
    """
    document = _read(path) if path else {}
    given = _nested({name: value for name, value in (flags or {}).items() if value is not None})
    _refuse_unknown_variables()

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=document)

    try:
        layered = Layered(**cast(Any, given))
    except ValidationError as problem:
        raise ConfigError(_sentence(problem, path, given)) from None
    except SettingsError as problem:
        raise ConfigError(f"The environment cannot be used: {problem}.") from None
    return Settings.model_construct(**{name: getattr(layered, name) for name in Settings.model_fields})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}: name another with -c.") from None
    except OSError as problem:
        raise ConfigError(f"The configuration file {path} cannot be read: {problem.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"The configuration file {path} is not TOML: {problem}.") from None


def _nested(flat: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    nested: dict[str, dict[str, Value]] = {}
    for name, value in flat.items():
        section, key = name.split(".")
        nested.setdefault(section, {})[key] = value
    return nested


def _refuse_unknown_variables() -> None:
    """Only names with the double underscore are ours: cluster managers set SHOAL_PORT and the like."""
    for variable in os.environ:
        if not variable.upper().startswith(ENV_PREFIX) or ENV_DELIMITER not in variable:
            continue
        section, _, key = variable[len(ENV_PREFIX) :].lower().partition(ENV_DELIMITER)
        if key not in {name.lower() for name in _keys(section)}:
            raise ConfigError(f"The environment variable {variable} sets nothing: {_known(section)}.")


def _keys(section: str) -> list[str]:
    field = Settings.model_fields.get(section)
    return list(field.annotation.model_fields) if field and field.annotation else []


def _known(section: str) -> str:
    keys = _keys(section)
    if keys:
        return f"[{section}] has {', '.join(keys)}"
    return f"the sections are {', '.join(Settings.model_fields)}"


def _sentence(problem: ValidationError, path: Path | None, given: Mapping[str, Any]) -> str:
    """The first error, with where the value came from."""
    error = problem.errors()[0]
    where = [str(part) for part in error["loc"]]
    section, name = where[0], ".".join(where[:2])
    variable = f"{ENV_PREFIX}{ENV_DELIMITER.join(where[:2])}".upper()
    if where[-1] in given.get(section, {}):
        origin = "the command line"
    elif any(variable == present.upper() for present in os.environ):
        origin = f"the environment variable {variable}"
    else:
        origin = f"{path}" if path else "the environment"
    if error["type"] == "extra_forbidden":
        return f"There is no setting {name} (in {origin}): {_known(section)}."
    reason = error["msg"][:1].lower() + error["msg"][1:]
    return f"The setting {name} = {error['input']!r} (in {origin}) is refused: {reason}."
