"""Settings: flags before environment before file before what is written here. Units come last in names.

A file is TOML with the sections below. In the environment `SHOAL_INDEX__EF=100` sets `[index] ef`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from engine.config_documents import (
    ENV_DELIMITER,
    ENV_PREFIX,
    merged,
    nested,
    old_variables,
    renamed,
)
from engine.config_problems import refuse_unknown_variables, sentence_of
from engine.config_values import (
    CorsOrigins,
    HomePath,
    MaybePath,
    Name,
    Prefix,
    RegistryUrl,
    Servers,
    Topic,
    expanded,
    need_finite,
    need_number,
)
from engine.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LMDB_KEY_MAX_BYTES = 511  # what LMDB takes
MAX_DIM = 16_384
MAX_LEVELS = 32
BULK_BATCH = 2048  # items a batch where throughput counts: files
STREAM_BATCH = 256  # items a batch of `evaluate --stream` and of the streaming benchmarks
RENEWED = ("model", "index")  # sections that a rebuild may change

Value = str | int | float | bool | None


class Options(TypedDict, total=False):
    """Keywords of `engine.Engine.open`; None is not given. Any other setting is `section__name`."""

    config: str | os.PathLike[str] | None  # a TOML file
    path: str | os.PathLike[str] | None  # of the store
    name: str | None  # of the collection
    dim: int | None
    index: Literal["hnsw", "exact"] | None
    adapter: str | os.PathLike[str] | None  # file of `shoal adapt` or `train`
    tau: float | None
    base_tau: float | None  # level 0's
    max_levels: int | None
    max_age_s: float | None  # retention
    max_items: int | None


_KEYWORDS = {
    "path": "store.path",
    "name": "collection.name",
    "dim": "collection.dim",
    "index": "index.kind",
    "model": "model.path",
    "adapter": "model.adapter",
    "tau": "model.tau",
    "base_tau": "model.base_tau",
    "max_levels": "model.max_levels",
    "max_age_s": "retention.max_age_s",
    "max_items": "retention.max_items",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: ValidationInfo) -> Any:
        return need_number(value, cls.model_fields[info.field_name or ""].annotation)

    @field_validator("*")
    @classmethod
    def _finite(cls, value: Any, info: ValidationInfo) -> Any:
        return need_finite(value, info.field_name or "")


class CollectionSettings(_Section):
    """What is clustered."""

    name: Name = Field("shoal", min_length=1, max_length=200)
    dim: int | None = Field(None, ge=1, le=MAX_DIM)  # None: that of most of the first batch's vectors


class StoreSettings(_Section):
    path: HomePath = Path("shoal-store")


class IndexSettings(_Section):
    """Names are hnswlib's: links per node, and candidates kept while inserting and while searching."""

    kind: Literal["hnsw", "exact"] = "hnsw"
    M: int = Field(16, ge=2, le=128)
    ef_construction: int = Field(200, ge=10, le=10_000)
    ef: int = Field(200, ge=10, le=10_000)


class ModelSettings(_Section):
    """None: what the model's card says, or the model that ships with Shoal."""

    path: HomePath | None = None
    adapter: MaybePath = None  # applied to every embedding; "" or None: none
    tau: float | None = Field(None, ge=0, lt=1)  # least linkage probability that links, above level 0
    base_tau: float | None = Field(None, ge=0, lt=1)  # and at level 0
    max_levels: int | None = Field(None, ge=1, le=MAX_LEVELS)
    coarser: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.35, 0.2], max_length=8
    )  # tau of each level of themes above the final clusters, falling; []: there are none

    @model_validator(mode="after")
    def _falling(self) -> ModelSettings:
        if any(upper >= lower for lower, upper in pairwise(self.coarser)):
            raise ValueError(f"coarser = {self.coarser} must fall: each level joins more than the last")
        return self


class KafkaSettings(_Section):
    """A topic of embeddings, and the topics that get the results: <topic>.assignments, .clusters, .dlq."""

    bootstrap: Servers  # host:port, more of them with commas
    topic: Topic
    key_format: Literal["utf8", "int32", "int64", "uuid"] = "utf8"  # binary ones as Kafka's serializers write
    value_format: Literal["json", "json-schema", "avro", "float32", "float64"] = "json"
    registry_url: RegistryUrl | None = None  # of the schemas that avro needs
    registry_username: str | None = None
    registry_password: SecretStr | None = None
    publish: bool = True  # False: nothing goes out
    skip_expired: bool = False  # True: continue after records that expired before they were read
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: SecretStr | None = None  # rather SHOAL_SOURCE__KAFKA__PASSWORD, or a file
    password_file: HomePath | None = None
    tls_ca_file: HomePath | None = None  # None: the system's authorities
    tls_cert_file: HomePath | None = None
    tls_key_file: HomePath | None = None
    tls_check_hostname: bool = True

    @model_validator(mode="after")
    def _fits(self) -> KafkaSettings:
        sasl = self.security.startswith("SASL")
        if sasl != (self.sasl_mechanism is not None):
            raise ValueError("security SASL_PLAINTEXT or SASL_SSL and sasl_mechanism go together")
        if sasl and (self.username is None or (self.password is None) == (self.password_file is None)):
            raise ValueError("SASL needs a username and either password or password_file")
        if not sasl and (self.username or self.password or self.password_file):
            raise ValueError("username and password need security SASL_PLAINTEXT or SASL_SSL")
        if self.registry_url is None and (self.registry_username or self.registry_password):
            raise ValueError("registry_username and registry_password need registry_url")
        if self.value_format == "avro" and self.registry_url is None:
            raise ValueError("value_format avro needs registry_url")
        files = self.tls_ca_file or self.tls_cert_file or self.tls_key_file
        if "SSL" not in self.security and (files or not self.tls_check_hostname):
            raise ValueError(f"tls_... settings need security SSL or SASL_SSL, not {self.security}")
        if self.tls_key_file and not self.tls_cert_file:
            raise ValueError("tls_key_file needs tls_cert_file, the certificate that the key is of")
        return self


class SourceSettings(_Section):
    """Where records come from; one source at a time."""

    http: bool = False
    kafka: KafkaSettings | None = None

    @model_validator(mode="after")
    def _one(self) -> SourceSettings:
        if self.http and self.kafka:
            raise ValueError("a store has one source at a time: http = true, or [source.kafka]")
        return self

    @property
    def publishes(self) -> bool:
        """Whether events leave the store."""
        return self.kafka is not None and self.kafka.publish


class BatchSettings(_Section):
    """`size` None: 2,048 for files, 256 for `evaluate --stream`; in the daemon by load, within the limits."""

    size: int | None = Field(None, ge=1, le=65_536)  # items
    min: int = Field(32, ge=1, le=65_536)  # by load: a batch may always have this many items
    max: int = Field(2048, ge=1, le=65_536)
    target_s: float = Field(1.0, gt=0)  # by load: a batch should not take longer

    @model_validator(mode="after")
    def _in_order(self) -> BatchSettings:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is more than max = {self.max}")
        return self


class RetentionSettings(_Section):
    """How long items and the event log, with its ended clusters, are kept. None: forever."""

    max_age_s: float | None = Field(None, gt=0)  # of an item, by its event time
    max_items: int | None = Field(None, ge=1)  # the oldest by event time go first
    events_max_age_s: float = Field(7 * 86_400.0, gt=0)
    events_max_bytes: int = Field(2**30, ge=2**20)


class ControlSettings(_Section):
    """The socket between the writer, the API and commands."""

    frame_max_bytes: int = Field(2**26, ge=2**16, le=2**31)
    connections_max: int = Field(128, ge=1, le=10_000)
    calls_max: int = Field(32, ge=1, le=10_000)  # of one operation, at once; more wait
    receive_timeout_s: float = Field(10.0, gt=0)  # for a request to arrive, or an answer to be taken


class ApiSettings(_Section):
    """Where queries are answered, and how many at once."""

    host: str = Field("127.0.0.1", min_length=1)  # any other than this machine's own needs a key_file
    port: int = Field(8000, ge=0, le=65_535)  # 0: a free one
    key_file: HomePath | None = None  # file of accepted API keys, one per line
    root_path: Prefix = ""  # "/shoal": below this prefix of the path
    forwarded_prefix: bool = False  # True: believe a proxy's X-Forwarded-Prefix
    cors_origins: CorsOrigins = []  # "https://example.com": whose pages may ask from a browser
    requests_max: int = Field(128, ge=1)  # concurrent requests; more get 503 with Retry-After
    connections_max: int = Field(512, ge=2)  # open at once; more get 503
    streams_max: int = Field(32, ge=0)  # open event streams; more get 503
    forwards_max: int = Field(8, ge=1)  # concurrent calls to the writer per operation; more get 503
    submits_max: int = Field(2, ge=1)  # concurrent submit calls; records arriving meanwhile join the next
    forward_timeout_s: float = Field(10.0, gt=0)  # for the writer's answer
    bulk_timeout_s: float = Field(60.0, gt=0)  # until the records of a PUT or a piece of NDJSON are durable
    body_max_bytes: int = Field(2**23, ge=2**10)  # of a JSON body, decompressed
    bulk_max_bytes: int = Field(2**28, ge=2**10)  # of an NDJSON body, which is processed in pieces
    bulk_batch: int = Field(1024, ge=1, le=65_536)  # records in such a piece
    exports_max: int = Field(2, ge=0)  # of all assignments, at once
    export_timeout_s: float = Field(3600.0, gt=0)
    lookup_max: int = Field(1000, ge=1, le=10_000)  # keys in one request
    lookup_payload_bytes: int = Field(2**25, ge=2**10)  # of their payloads
    assign_max: int = Field(256, ge=1, le=65_536)  # vectors in one request
    page_max: int = Field(1000, ge=1, le=10_000)  # entries on a page
    page_payload_bytes: int = Field(2**22, ge=2**10)  # a page ends when its payloads exceed this
    header_max_bytes: int = Field(2**15, ge=2**10)  # of a request's head
    patience_s: float = Field(20.0, gt=0)  # longest wait for a client that sends or reads slowly
    heartbeat_s: float = Field(15.0, gt=0)  # between two signs of life on an idle event stream
    growth_window_s: float = Field(3600.0, gt=0)  # over which growth is counted
    growth_events: int = Field(300_000, ge=1)  # most events counted in that window
    history_events: int = Field(200_000, ge=1)  # newest lineage events kept for clusters' histories
    history_versions: int = Field(100_000, ge=0)  # versions searched for them at a start
    lag_max_s: float = Field(60.0, gt=0)  # /readyz fails while the oldest waiting record is older

    @model_validator(mode="after")
    def _fits(self) -> ApiSettings:
        if "*" in self.cors_origins and self.key_file is None:
            raise ValueError('cors_origins = ["*"] lets every web page read what needs no key: set key_file')
        return self


class LimitsSettings(_Section):
    """Limits on what comes in and on what the process may take."""

    key_max_bytes: int = Field(LMDB_KEY_MAX_BYTES, ge=1, le=LMDB_KEY_MAX_BYTES)
    payload_max_bytes: int = Field(2**18, ge=0, le=2**30)
    record_max_bytes: int = Field(2**20, ge=2**10, le=2**30)  # a line of .jsonl or a bulk, a Kafka record
    map_size_bytes: int = Field(
        2**36, ge=2**20, le=2**46
    )  # address space set aside for LMDB; it grows when full
    free_disk_min_bytes: int = Field(2**26, ge=0)  # refuse to write with less
    snapshot_items: int = Field(8_000, ge=1)  # changed items between two snapshots, at least
    expire_items: int = Field(1_000, ge=1)  # deleted by retention in one batch, or twice what it brings
    slack: int = Field(6, ge=0, le=64)  # neighbours known beyond the k in use
    search_width: int = Field(100, ge=16, le=10_000)  # hnsw: candidates asked for each new item
    assign_together: int = Field(64, ge=1, le=4096)  # vectors per `assign` micro-batch
    assign_waiting: int = Field(1024, ge=1)  # waiting vectors to assign; beyond, callers get 503
    switch_wait_s: float = Field(10.0, gt=0)  # longest wait of `assign` for a rebuild's switch-over
    theme_clusters: int = Field(20_000, ge=1, le=1_000_000)  # most final clusters grouped into themes
    theme_share: float = Field(0.1, gt=0, le=1)  # largest share of the time spent on grouping
    stop_timeout_s: float = Field(25.0, gt=0)  # from SIGTERM on, to finish the batch and close
    start_timeout_s: float = Field(900.0, gt=0)  # for the writer to open the store
    progress_timeout_s: float = Field(300.0, gt=0)  # without progress for this long, watchdog beats stop
    restarts_max: int = Field(5, ge=0, le=1000)  # of a process that fails, within restarts_window_s
    restarts_window_s: float = Field(600.0, gt=0)
    queue_records: int = Field(8192, ge=1)  # read from a stream and waiting for a batch
    queue_bytes: int = Field(2**26, ge=2**16)
    publish_events: int = Field(2000, ge=1)  # of one transaction of the outgoing topics
    publish_bytes: int = Field(2**22, ge=2**12)
    dead_letter_max_bytes: int = Field(2**24, ge=2**10)  # what the dead letters' topic is made to take
    discovery_interval_s: float = Field(2.0, gt=0)  # between two checks for new partitions and the topic's id
    stall_timeout_s: float = Field(30.0, gt=0)  # reconnect when unread records have not arrived for so long
    holders_max: int = Field(64, ge=0, le=10_000)  # hnsw: list holders offered a new item, per neighbour


class _Environment(EnvSettingsSource):
    """Environment variables, also those with old names. What is no JSON stays text, to be refused by name."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value

    def __call__(self) -> dict[str, Any]:
        return merged(old_variables(), renamed(super().__call__()))


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
    source: SourceSettings = SourceSettings()
    batch: BatchSettings = BatchSettings()
    retention: RetentionSettings = RetentionSettings()
    control: ControlSettings = ControlSettings()
    api: ApiSettings = ApiSettings()
    limits: LimitsSettings = LimitsSettings()

    def __init__(self, **given: Any) -> None:
        super().__init__(**renamed(given))

    def in_folder(self, folder: Path) -> Settings:
        """Return the settings of a store in another folder. Raises ValueError."""
        return self.model_copy(update={"store": StoreSettings(path=folder)})

    def with_model(self, **changed: Any) -> Settings:
        """Return the settings with other values in [model], which are not checked."""
        return self.model_copy(update={"model": self.model.model_copy(update=changed)})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)


def load(
    path: Path | None = None, flags: Mapping[str, Value] | None = None, flags_are: str = "the command line"
) -> Settings:
    """Read the settings of a file (None: no file), the environment and flags, `{"index.kind": "exact"}`.

    A flag of None is one that was not given. Raises `ConfigError` naming key, value and origin;
    `flags_are`: what it calls that of flags.
    """
    document = renamed(_read(path)) if path else {}
    given = renamed(nested({name: value for name, value in (flags or {}).items() if value is not None}))
    refuse_unknown_variables(Settings)
    origins = {str(path): document, flags_are: given}
    try:
        return Settings(**merged(merged(document, _Environment(Settings)()), given))
    except ValidationError as problem:
        raise ConfigError(sentence_of(problem, origins, Settings)) from None
    except SettingsError as problem:
        raise ConfigError(f"The environment cannot be used: {problem}.") from None


def with_options(options: Mapping[str, Any]) -> Settings:
    """Return the settings of keywords, `Options`, over the environment. Raises ConfigError."""
    flags: dict[str, Value] = {}
    for keyword, value in options.items():
        name = _KEYWORDS.get(keyword) or keyword.replace(ENV_DELIMITER, ".")
        if keyword != "config" and "." not in name:
            known = ", ".join(["config", *_KEYWORDS])
            raise ConfigError(f"There is no keyword {keyword}: there are {known}, and section__name.")
        flags[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    file = flags.pop("config", None)
    return load(None if file is None else Path(str(file)), flags, "the keywords")


def _read(path: Path) -> dict[str, Any]:
    """Read a file of settings. pydantic-settings' own source says nothing of a file that is not there."""
    try:
        return tomllib.loads(expanded(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}: name another with -c.") from None
    except OSError as problem:
        raise ConfigError(f"The configuration file {path} cannot be read: {problem.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"The configuration file {path} is not TOML in UTF-8: {problem}.") from None
    except ValueError as problem:  # there is no home folder
        raise ConfigError(f"The configuration file {path} cannot be read: {problem}.") from None
