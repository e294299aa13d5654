"""Without what a broker needs, tests with Kafka fail with a sentence; they do not skip."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests import broker
from tests.broker import Given, NoBroker, open_broker
from tests.support.ports import EPHEMERAL, free_ports


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoBroker, match="need Java 17: install it"):
        open_broker(tmp_path / "broker")
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    with pytest.raises(NoBroker, match="fetch a broker with Maven: install it"):
        open_broker(tmp_path / "broker")
    (tmp_path / "mvn").write_text("#!/bin/sh\necho '[ERROR] no route to it'\nexit 1\n")
    (tmp_path / "mvn").chmod(0o755)
    with pytest.raises(NoBroker, match=r"Maven could not fetch the broker.*no route to it"):
        open_broker(tmp_path / "broker")


def test_a_broker_that_does_not_start_tells_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    java = tmp_path / "java"
    java.write_text(
        "#!/bin/sh\ncase $* in *StorageTool*) exit 0;; esac\necho 'Address already in use'\nexit 1\n"
    )
    java.chmod(0o755)
    with pytest.raises(NoBroker, match=r"did not start: the end of .*/log is\nAddress already in use"):
        open_broker(tmp_path / "broker")


def test_no_connection_is_given_a_port_that_a_server_will_listen_on() -> None:
    lowest = int(EPHEMERAL.read_text().split()[0])
    found = free_ports(4)
    assert len(set(found)) == 4
    assert max(found) < lowest
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert other.getsockname()[1] >= lowest


def test_a_given_broker_is_used_and_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "127.0.0.1:1")
    with pytest.raises(NoBroker, match=r"no broker at 127.0.0.1:1: start it, or unset KAFKA_BOOTSTRAP"):
        open_broker(tmp_path)
    monkeypatch.setattr(broker, "_answers", lambda bootstrap: True)
    given = open_broker(tmp_path)
    assert isinstance(given, Given)
    given.stop()
    with pytest.raises(NoBroker, match="unset KAFKA_BOOTSTRAP"):
        given.kill()
