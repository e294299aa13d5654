"""Settings: what wins over what, and how mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import config, config_documents
from engine.config import Settings, Value
from engine.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("SHOAL_"):
            monkeypatch.delenv(name)


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "shoal.toml", "[index]\nM = 8\nef = 50\nef_construction = 60\n[batch]\nsize = 7")
    monkeypatch.setenv("SHOAL_INDEX__EF", "70")
    monkeypatch.setenv("SHOAL_INDEX__EF_CONSTRUCTION", "80")
    flags: dict[str, Value] = {"index.ef_construction": 90, "index.kind": None}
    settings = config.load(path, flags)
    index = settings.index
    assert (index.kind, index.M, index.ef, index.ef_construction) == ("hnsw", 8, 70, 90)
    assert (settings.batch.size, settings.store.path) == (7, Path("shoal-store"))


def test_cluster_managers_may_set_variables_that_look_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("SHOAL_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("SHOAL_API_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("SHOAL_PORT_80_TCP_PROTO", "tcp")
    assert config.load().index.M == 16


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[index]\nef = 'many'", ["index.ef", "'many'", "shoal.toml"]),
        ("[index]\nef = 5", ["index.ef", "5", "greater than or equal to 10", "shoal.toml"]),
        ("[index]\nkind = 'faiss'", ["index.kind", "'faiss'", "'hnsw' or 'exact'", "shoal.toml"]),
        ("[index]\neff = 5", ["index.eff", "shoal.toml", "[index] has kind, M, ef_construction, ef"]),
        ('[collection]\nname = "a\\u001b[31m"', ["name = 'a\\x1b[31m'", "it has a control character"]),
        ("[indices]\nef = 5", ["indices", "shoal.toml", "the sections are collection, store"]),
        ("index = 5", ["index = 5", "shoal.toml", "is refused: it has to be a table."]),
        ("[index", ["shoal.toml", "not TOML"]),
        ("[model]\ntau = 1.5", ["model.tau", "1.5", "less than 1"]),
        ("[source.kafka]\ntopic = 'a'", ["source.kafka.bootstrap is missing", "shoal.toml"]),
        ("[source.kafka]\nbroker = 'a'\ntopic = 'a'\nbootstrap = 'a:1'", ["no setting source.kafka.broker"]),
        ("[source]\nhttp = true\nkafka = {topic = 'a', bootstrap = 'a:1'}", ["one source at a time"]),
        (
            "[source.kafka]\ntopic = 'a'\nbootstrap = 'a:1'\nsecurity = 'SASL_SSL'",
            ["[source.kafka]", "sasl_mechanism go together"],
        ),
        (
            "[source.kafka]\ntopic = 'a'\nbootstrap = 'a:1'\ntls_ca_file = 'ca.pem'",
            ["tls_... settings need security SSL"],
        ),
        ("[api]\nport = true", ["api.port = True", "has to be a number"]),
        ("[model]\ntau = false", ["model.tau = False", "has to be a number"]),
        ("[model]\nmax_levels = true", ["model.max_levels = True", "has to be a number"]),
        ("[retention]\nmax_age_s = inf", ["retention.max_age_s = inf", "finite"]),
        ("[retention]\nmax_age_s = 1e30", ["retention.max_age_s = 1e+30", "at most 4000000000"]),
        ("[api]\nrequests_max = 99999999999999999999", ["api.requests_max", "at most 4611686018427387904"]),
        ("[limits]\nmap_size_bytes = 99999999999999", ["limits.map_size_bytes", "less than or equal to"]),
        ("[api]\nkey_file = ''", ["api.key_file = ''", "has to be a path"]),
        ("[store]\npath = ''", ["store.path = ''", "has to be a path"]),
        ("[store]\npath = '~nobody-here/a'", ["store.path = '~nobody-here/a'", "home directory."]),
        ("[api]\nroot_path = 'shoal/'", ["api.root_path = 'shoal/'", "a path like /shoal"]),
        ("[api]\ncors_origins = 'https://a.b'", ["api.cors_origins = 'https://a.b'", "has to be a list"]),
        ("[api]\ncors_origins = ['https://a.b/']", ["'https://a.b/'", "an origin like https://example.com"]),
        (
            "[source.kafka]\ntopic = 'a b'\nbootstrap = 'a:1'",
            ["source.kafka.topic = 'a b'", "letters, digits"],
        ),
        ("[source.kafka]\ntopic = '..'\nbootstrap = 'a:1'", ["source.kafka.topic = '..'", "letters, digits"]),
        ("[source.kafka]\ntopic = 'a'\nbootstrap = 'a:x'", ["source.kafka.bootstrap = 'a:x'", "host:port"]),
        ("[source.kafka]\ntopic = 'a'\nbootstrap = 'a:1,,'", ["source.kafka.bootstrap", "host:port"]),
        ("[source.kafka]\ntopic = 'a'\nbootstrap = 'http://a:1'", ["source.kafka.bootstrap", "host:port"]),
        (
            "[source.kafka]\ntopic = 'a'\nbootstrap = 'a:1'\nregistry_url = 'a:8081'",
            ["source.kafka.registry_url = 'a:8081'", "an address like http://localhost:8081"],
        ),
        (
            "[source.kafka]\ntopic = 'a'\nbootstrap = 'a:1'\nusername = 'me'\npassword = 'secret'",
            ["[source.kafka]", "username and password need security SASL"],
        ),
        (
            "[source.kafka]\ntopic = 'a'\nbootstrap = 'a:1'\nregistry_password = 'secret'",
            ["[source.kafka]", "need registry_url"],
        ),
        (
            "[source.kafka]\ntopic = 'a'\nbootstrap = 'a:1'\ntls_check_hostname = false",
            ["tls_... settings need security SSL"],
        ),
        (
            "[source.kafka]\ntopic = 'a'\nbootstrap = 'a:1'\nsecurity = 'SSL'\ntls_key_file = 'key.pem'",
            ["tls_key_file needs tls_cert_file"],
        ),
        ("[limits]\nkey_max_bytes = 512", ["limits.key_max_bytes", "512", "less than or equal to 511"]),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        config.load(write(tmp_path / "shoal.toml", text))
    sentence = str(raised.value)
    assert [word for word in words if word not in sentence] == []
    assert "\n" not in sentence
    assert "pattern" not in sentence
    assert not sentence.endswith("..")
    assert "secret" not in sentence


@pytest.mark.parametrize("servers", ["a", "a:1", "a:1, b-c.example:65535", "[::1]:9092", "::1", "10.0.0.1:1"])
def test_addresses_of_brokers(servers: str) -> None:
    kafka = config.load(None, {"source.kafka.topic": "a", "source.kafka.bootstrap": servers}).source.kafka
    assert kafka is not None
    assert kafka.bootstrap == servers


def test_a_contradiction_names_both_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_SOURCE__KAFKA__TOPIC", "a")
    monkeypatch.setenv("SHOAL_SOURCE__KAFKA__BOOTSTRAP", "a:1")
    path = write(tmp_path / "shoal.toml", "[source]\nhttp = true")
    with pytest.raises(
        ConfigError, match=r"\(in .*shoal.toml and the environment\) do not fit: .* one source"
    ):
        config.load(path)


def test_a_file_may_begin_with_the_mark_of_the_byte_order(tmp_path: Path) -> None:
    """As editors of Windows write it."""
    (tmp_path / "shoal.toml").write_text("[index]\nef = 321\n", encoding="utf-8-sig")
    assert config.load(tmp_path / "shoal.toml").index.ef == 321


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file .*nope\.toml"):
        config.load(tmp_path / "nope.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        config.load(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SHOAL_INDEX__EF", "many", "index.ef = 'many' (in the environment variable SHOAL_INDEX__EF)"),
        ("SHOAL_INDEX__EFF", "7", "SHOAL_INDEX__EFF sets nothing"),
        ("SHOAL_INDICES__EF", "7", "the sections are"),
        ("SHOAL_INDEX_EF", "5", "SHOAL_INDEX_EF sets nothing: set SHOAL_INDEX__EF if that is meant"),
        ("SHOAL_MODEL_TAU", "0.9", "set SHOAL_MODEL__TAU if"),
        ("SHOAL_API_PORT", "80", "set SHOAL_API__PORT if"),
        ("SHOAL_SOURCE_KAFKA_TOPIK", "t", "set SHOAL_SOURCE__KAFKA__TOPIC if"),
        ("SHOAL_FOO", "1", "SHOAL_FOO sets nothing: the sections are collection, store"),
        ("SHOAL_SOURCE__KAFKA__BROKER", "7", "[source.kafka] has bootstrap, topic"),
        ("SHOAL_SOURCE__KAFKA__TOPIC", "7", "source.kafka.bootstrap is missing"),
        ("SHOAL_INDEX", "7", "environment"),
        ("SHOAL_INDEX", "{", "index = '{' (in the environment variable SHOAL_INDEX) is refused"),
        (
            "SHOAL_API__CORS_ORIGINS",
            "https://a.b",
            "(in the environment variable SHOAL_API__CORS_ORIGINS) is refused: it has to be a list",
        ),
        ("SHOAL_MODEL__COARSER", '["a"]', "(in the environment variable SHOAL_MODEL__COARSER) is refused"),
    ],
)
def test_mistakes_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        config.load()
    assert words in str(raised.value)


def test_a_password_comes_from_the_environment_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "topic='a'\nbootstrap='a:1'\nsecurity='SASL_SSL'\nsasl_mechanism='PLAIN'\nusername='me'"
    monkeypatch.setenv("SHOAL_SOURCE__KAFKA__PASSWORD", "secret")
    kafka = config.load(write(tmp_path / "shoal.toml", "[source.kafka]\n" + text)).source.kafka
    assert kafka is not None
    assert kafka.password is not None
    assert kafka.password.get_secret_value() == "secret"
    assert "secret" not in repr(kafka)


def test_mistakes_in_flags() -> None:
    with pytest.raises(ConfigError, match=r"index.kind = 'faiss' \(in the command line\)"):
        config.load(None, {"index.kind": "faiss"})


OLD = "[bounds]\nslack = 3\nprobe_waiting = 77\n[batch]\nleast = 5\nmost = 50\n"


def test_old_names_are_understood_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config_documents._log_old_name.cache_clear()
    path = write(tmp_path / "shoal.toml", OLD)
    for _ in range(2):
        found = config.load(path)
    assert (found.limits.slack, found.limits.assign_waiting) == (3, 77)
    assert (found.batch.min, found.batch.max) == (5, 50)
    assert [record.getMessage() for record in caplog.records] == [
        f"the setting {old} is called {new} now; the next release does not know the old name"
        for old, new in config_documents.RENAMED.items()
        if "together" not in old
    ]


def test_old_names_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_BOUNDS__SLACK", "4")
    monkeypatch.setenv("SHOAL_BATCH__LEAST", "6")
    assert config.load(write(tmp_path / "shoal.toml", OLD)).limits.slack == 4
    assert config.load().batch.min == 6
    assert Settings().limits.slack == 4
    assert config.load(None, {"bounds.slack": 5}).limits.slack == 5
    assert Settings.model_validate({"bounds": {"slack": 7}}).limits.slack == 7
    monkeypatch.setenv("SHOAL_LIMITS__SLACK", "8")
    assert config.load().limits.slack == 8


def test_a_mistake_under_an_old_name_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no setting limits\.slak .*shoal\.toml"):
        config.load(write(tmp_path / "shoal.toml", "[bounds]\nslak = 3\n"))
    with pytest.raises(ConfigError, match=r"limits = 5 "):
        config.load(write(tmp_path / "shoal.toml", "bounds = 5\n"))


def test_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = (
        "[store]\npath = '~/store'\n[model]\npath = '~/model'\n[api]\nkey_file = '~/keys'\n[source.kafka]\n"
        "topic = 'a'\nbootstrap = 'a:1'\nsecurity = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'\nusername = 'me'\n"
        "password_file = '~/p'\ntls_ca_file = '~/c'\ntls_cert_file = '~/d'\ntls_key_file = '~/k'\n"
    )
    found = config.load(write(tmp_path / "shoal.toml", text)).model_dump(mode="json")
    assert str(found).count("/home/me/") == str(text).count("~/") == 7
    assert config.load(None, {"store.path": "~/s"}).store.path == Path("/home/me/s")
    with pytest.raises(ConfigError, match="home directory"):
        config.load(Path("~nobody-by-this-name/shoal.toml"))
