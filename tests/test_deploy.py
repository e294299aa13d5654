"""What runs Shoal: the files agree with each other, with the command line, the settings and the metrics."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine import config, errors
from engine.api.middleware.metrics import Meters
from engine.cli.main import app
from engine.config import Settings
from engine.daemon.metrics import Metrics
from engine.daemon.supervisor import API_STOP_S
from engine.storage.store import Store
from engine.streams import Lag
from engine.types import Applied
from tests.conftest import ROOT

DEPLOY = ROOT / "engine/deploy"
BOUNDS = Settings.model_construct().limits
EXIT_CODES = {
    kind.exit_code
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ShoalError)
} - {0}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    return [
        (name, words.strip())
        for name, _, words in (line.partition(" ") for line in lines)
        if name and not name.startswith("#")
    ]


def check_command(words: list[str]) -> None:
    """`shoal serve -c FILE` and the like: the command and its options exist."""
    assert words[0] == "shoal"
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {name for option in commands[words[1]].params for name in option.opts}
    assert {word for word in words[2:] if word.startswith("-")} <= options, words


def settings_at(path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return config.load(path)


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that the container of compose.yaml runs with."""
    words = " ".join(arguments for name, arguments in dockerfile() if name == "ENV")
    variables = dict(word.split("=", 1) for word in shlex.split(words))
    ours = {name: value for name, value in variables.items() if name.startswith("SHOAL_")}
    return settings_at(DEPLOY / "shoal.toml", monkeypatch, ours)


def test_the_image_runs_what_there_is() -> None:
    instructions = dockerfile()
    for name, words in instructions:
        if name == "COPY" and not words.startswith("--from"):
            for source in words.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines(), source
    last = dict(instructions)
    check_command([*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])])
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert last["USER"] == "shoal"
    assert sum(name == "FROM" for name, _ in instructions) == 2


def test_the_image_is_asked_where_it_answers(deployed: Settings) -> None:
    words = dict(dockerfile())
    assert words["EXPOSE"] == str(deployed.api.port)
    script = json.loads(words["HEALTHCHECK"].partition("CMD")[2])[2]
    compile(script, "the health check", "exec")
    assert f"http://127.0.0.1:{deployed.api.port}/livez" in script
    assert deployed.api.host == "0.0.0.0"
    assert str(deployed.store.path).startswith(words["VOLUME"] + "/")


def test_compose_names_only_what_there_is() -> None:
    found = compose()
    for name, service in found["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in found["volumes"], mount
        for other in service.get("depends_on", []):
            assert other in found["services"], f"{name} depends on {other}"
        assert set(service.get("secrets", [])) <= found["secrets"].keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    mounts = [service.get("volumes", []) for service in found["services"].values()]
    assert {mount.split(":")[0] for some in mounts for mount in some if mount[0] != "."} == found[
        "volumes"
    ].keys()
    assert found["services"]["kafka"]["image"] == found["services"]["topic"]["image"]


def test_compose_and_shoal_agree(deployed: Settings) -> None:
    services = compose()["services"]
    shoal, kafka = services["shoal"], services["kafka"]["environment"]
    assert deployed.source.kafka
    assert f"INSIDE://{deployed.source.kafka.bootstrap}" in kafka["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert f"--topic={deployed.source.kafka.topic}" in services["topic"]["command"]
    assert f"--bootstrap-server={deployed.source.kafka.bootstrap}" in services["topic"]["command"]
    assert deployed.api.key_file == Path("/run/secrets") / shoal["secrets"][0]
    assert shoal["ports"] == [f"127.0.0.1:{deployed.api.port}:{deployed.api.port}"]
    assert seconds(shoal["stop_grace_period"]) > BOUNDS.stop_timeout_s + API_STOP_S
    config_path = json.loads(dict(dockerfile())["CMD"])[-1]
    assert f"./engine/deploy/shoal.toml:{config_path}:ro" in shoal["volumes"]
    assert f"shoal:{dict(dockerfile())['VOLUME']}" in shoal["volumes"]


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def test_kafka_listens_where_it_says() -> None:
    kafka = compose()["services"]["kafka"]
    said = kafka["environment"]
    ports = dict(part.split("://:") for part in said["KAFKA_LISTENERS"].split(","))
    for part in said["KAFKA_ADVERTISED_LISTENERS"].split(","):
        name, address = part.split("://")
        assert address.split(":")[1] == ports[name]
    protocols = dict(part.split(":") for part in said["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert protocols.keys() == ports.keys()
    assert {said["KAFKA_INTER_BROKER_LISTENER_NAME"], said["KAFKA_CONTROLLER_LISTENER_NAMES"]} <= ports.keys()
    assert said["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"1@kafka:{ports['CONTROLLER']}"
    assert kafka["ports"] == [f"127.0.0.1:{ports['HOST']}:{ports['HOST']}"]
    assert f"kafka:{said['KAFKA_LOG_DIRS']}" in kafka["volumes"]


def test_prometheus_and_grafana_find_each_other(deployed: Settings) -> None:
    services = compose()["services"]
    found = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (job,) = found["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"shoal:{deployed.api.port}"]
    assert job["authorization"]["credentials_file"] == str(deployed.api.key_file)
    mounts = {mount.split(":")[1] for mount in services["prometheus"]["volumes"]}
    assert set(found["rule_files"]) <= mounts
    grafana = services["grafana"]
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    port = services["prometheus"]["ports"][0].rpartition(":")[2]
    assert source["url"] == f"http://prometheus:{port}"
    (provider,) = yaml.safe_load((provisioning / "dashboards/shoal.yml").read_text())["providers"]
    folders = {mount.split(":")[1]: mount.split(":")[0] for mount in grafana["volumes"]}
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(provider["options"]["path"])
    assert (ROOT / folders[str(home.parent)] / home.name).exists()
    for panel in dashboard()["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/shoal.json").read_text())
    return found


def expressions() -> Iterator[str]:
    """All that the dashboard and the alerts ask Prometheus."""
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"]
            yield rule["expr"]


@pytest.fixture
def metrics(tmp_path: Path) -> dict[str, set[str]]:
    """All samples that a daemon serves, and their labels."""
    with Store.open(tmp_path / "store", {"collection": "c", "dim": 2}) as store:
        writer = Metrics(store, lambda: Lag({"0": 3}, 1.0))
        writer.committed(Applied(1, inserted=1, stats={"seconds": {"store": 0.1}}), 0.2)
        writer.published({"events": {"assignments": 2}, "lag_events": 1})
        text = writer.text()
    meters = Meters()
    meters.requests.labels("GET", "/livez", "200").inc()
    meters.seconds.labels("/livez").observe(0.1)
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(text + generate_latest(meters.registry).decode()):
        for sample in family.samples:
            found[sample.name] = set(sample.labels) | {"job", "instance"}
    return found


def test_every_metric_that_is_asked_for_exists(metrics: dict[str, set[str]]) -> None:
    asked = set()
    for expression in expressions():
        names = set(re.findall(r"\b(?:shoal_\w+|up)\b", re.sub(r"\{[^}]*\}|\"[^\"]*\"", "", expression)))
        assert names, expression
        assert names <= metrics.keys(), f"{expression}: {names - metrics.keys()}"
        labels = {
            label.strip()
            for some in re.findall(r"(?:by|on|without) \(([^)]*)\)", expression)
            for label in some.split(",")
        }
        labels |= set(re.findall(r"[{,]\s*(\w+)\s*[=!]", expression))
        assert labels <= set.union(*(metrics[name] for name in names)), f"{expression}: {labels}"
        asked |= names
    told = {re.sub("_(bucket|count|sum)$", "_bucket", name) for name in metrics}
    assert told <= asked, f"nobody looks at {told - asked}"


def test_the_dashboard_is_laid_out() -> None:
    panels = dashboard()["panels"]
    cells = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= own
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            aggregated = re.search(r"\bby \(([^)]*)\)", target["expr"])
            assert not aggregated or named <= set(aggregated[1].split(", ")), panel["title"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)


@pytest.mark.process
def test_the_unit_fits_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DEPLOY / "shoal.service").read_text()
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    unit = parser["Service"]
    assert unit["Type"] == "notify"
    words = unit["ExecStart"].split()
    check_command([Path(words[0]).name, *words[1:]])
    assert float(unit["TimeoutStartSec"]) > BOUNDS.start_timeout_s
    assert float(unit["TimeoutStopSec"]) > BOUNDS.stop_timeout_s + API_STOP_S
    assert {int(code) for code in unit["RestartPreventExitStatus"].split()} <= EXIT_CODES
    store = re.findall(r"SHOAL_STORE__PATH=(\S+)", text)
    assert store == [f"/var/lib/{unit['StateDirectory']}/store"]
    variables = dict(re.findall(r"(SHOAL_\w+)=(\S+)", text))
    assert str(settings_at(DEPLOY / "shoal.toml", monkeypatch, variables).store.path) == store[0]
    if shutil.which("systemd-analyze"):
        checked = tmp_path / "shoal.service"
        checked.write_text(text.replace(words[0], "/bin/true"))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(checked)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr


def test_the_key_is_not_versioned() -> None:
    key = compose()["secrets"]["shoal_key"]["file"].removeprefix(".")
    assert key in (ROOT / ".gitignore").read_text().splitlines()
