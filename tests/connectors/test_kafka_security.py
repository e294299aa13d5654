"""The Kafka source and a broker that asks who it is: credentials, certificates."""

from __future__ import annotations

import select
import socket
import ssl
from pathlib import Path

import pytest
from kafka.errors import KafkaConnectionError
from kafka.net.selector import NetworkSelector
from pydantic import SecretStr

from connectors.kafka.client import KafkaCluster, _Connections
from engine.config import KafkaSettings
from engine.errors import BrokerError, ConfigError
from tests.broker import PASSWORD, USER, Broker
from tests.broker.topics import Topics
from tests.support.kafka import Open, numbered


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal ends connecting, not the time for it, which is longer than a test waits."""
    monkeypatch.setattr("connectors.kafka.client.BOOTSTRAP_TIMEOUT_MS", 600_000)


@pytest.mark.usefixtures("patient")
def test_credentials(topics: Topics, broker: Broker, reading: Open, tmp_path: Path) -> None:
    topic = topics.make()
    topics.produce(topic, numbered(3))
    (tmp_path / "password").write_text(PASSWORD + "\n")
    sasl = {
        "kafka__bootstrap": broker.sasl_bootstrap,
        "kafka__security": "SASL_PLAINTEXT",
        "kafka__sasl_mechanism": "PLAIN",
    }
    right = reading(topic, **sasl, kafka__username=USER, kafka__password_file=tmp_path / "password")
    right.take_until(lambda: len(right.live) == 3)
    words = reading(topic, **sasl, kafka__username="me", kafka__password="wrong").fail(120)
    assert "refuses user 'me'" in words
    assert "wrong" not in words
    with pytest.raises(ConfigError, match=r"password file .* cannot be read"):
        reading(topic, **sasl, kafka__username=USER, kafka__password_file=tmp_path / "none")


@pytest.mark.usefixtures("patient")
def test_an_encrypted_connection(topics: Topics, broker: Broker, reading: Open) -> None:
    topic = topics.make()
    topics.produce(topic, numbered(3))
    tls = {
        "kafka__bootstrap": broker.tls_bootstrap,
        "kafka__security": "SASL_SSL",
        "kafka__sasl_mechanism": "SCRAM-SHA-512",
        "kafka__username": USER,
    }
    trusted = {**tls, "kafka__tls_ca_file": broker.certificate}
    read = reading(topic, **trusted, kafka__password=PASSWORD)
    read.take_until(lambda: len(read.live) == 3)
    words = reading(topic, **trusted, kafka__password="wrong").fail(120)
    assert f"refuses user {USER!r}" in words
    assert "wrong" not in words
    words = reading(topic, **tls, kafka__password=PASSWORD).fail(120)
    assert "not trusted" in words
    assert "tls_ca_file" in words
    elsewhere = {**trusted, "kafka__bootstrap": f"localhost:{broker.tls_port}"}
    words = reading(topic, **elsewhere, kafka__password=PASSWORD).fail(120)
    assert "not trusted" in words
    assert "name it in bootstrap" in words


@pytest.mark.usefixtures("patient")
def test_a_server_that_refuses_is_one_of_several(broker: Broker) -> None:
    """Connecting goes on until another one answers, and ends when each refused."""
    settings = KafkaSettings(
        bootstrap=f"localhost:{broker.tls_port},127.0.0.1:{broker.tls_port}",
        topic="t",
        security="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        username=USER,
        password=PASSWORD,
        tls_ca_file=broker.certificate,  # of 127.0.0.1
    )
    for _ in range(4):  # the client begins with any of them
        with KafkaCluster(settings) as cluster:
            assert cluster.topic("no-such-topic") is None
    wrong = settings.model_copy(update={"password": SecretStr("wrong")})
    with KafkaCluster(wrong) as cluster, pytest.raises(BrokerError, match=r"refuses user|not trusted"):
        cluster.topic("t")


def test_what_arrives_with_the_end_of_a_connection_is_read() -> None:
    """A broker says why it refuses a login and closes the connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        net = NetworkSelector()
        connections = _Connections(net, bootstrap_servers=f"127.0.0.1:{server.getsockname()[1]}")
        transport = net.run(connections._build_transport, connections.cluster.bootstrap_brokers()[0])
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"why")
        select.select([transport._sock], [], [], 60)
        assert transport._sock_recv() == (b"why", None)
        select.select([transport._sock], [], [], 60)
        data, error = transport._sock_recv()
        assert data == b""
        assert isinstance(error, KafkaConnectionError)
        transport._sock.close()
        connections.close()
        net.close()


@pytest.mark.parametrize(("code", "is_final"), [(9, False), (10, False), (18, True), (62, True)])
def test_a_certificate_that_time_mends_is_tried_again(code: int, is_final: bool) -> None:
    cause = ssl.SSLCertVerificationError("certificate verify failed")
    cause.verify_code = code
    error = KafkaConnectionError("Handshake failed")
    error.__context__ = cause
    cluster = KafkaCluster(KafkaSettings(bootstrap="127.0.0.1:9", topic="t"))
    assert (cluster.refusal(error) is not None) == is_final
