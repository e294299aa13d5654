"""A real Apache Kafka broker (KRaft, one node) for tests, the demo and benchmarks.

Its jars come from Maven Central by `pom.xml`, once, into a cache outside the work tree. With
KAFKA_BOOTSTRAP set, that broker is used instead; it cannot be stopped from here. What is missing is
said in one sentence, by raising `NoBroker`: without a broker a test fails, it does not skip.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from tests.support.ports import free_ports

POM = Path(__file__).with_name("pom.xml")
HEAP = ("-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
START_TIMEOUT_S = 120.0
LAST_LINES = 30  # of its log, told where it does not start
BROKER = "kafka.Kafka"
USER, PASSWORD = "shoal", "the broker's password"
STORE_PASSWORD = "of the key store"
SETTINGS = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAIN://127.0.0.1:{port},SASL://127.0.0.1:{sasl},TLS://127.0.0.1:{tls},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAIN://127.0.0.1:{port},SASL://127.0.0.1:{sasl},TLS://127.0.0.1:{tls}
listener.security.protocol.map=PLAIN:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SASL_SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAIN
controller.listener.names=CONTROLLER
sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \\
  required user_{user}="{password}";
listener.name.tls.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.tls.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule \\
  required;
listener.name.tls.ssl.keystore.type=PKCS12
listener.name.tls.ssl.keystore.location={keystore}
listener.name.tls.ssl.keystore.password={store_password}
listener.name.tls.ssl.key.password={store_password}
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.check.interval.ms=1000
log.initial.task.delay.ms=1000
file.delete.delay.ms=1000
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=2097152
"""


class NoBroker(Exception):
    """There is no broker to test with; the message says what to install."""


class Given:
    """The broker of KAFKA_BOOTSTRAP. What would disturb it is refused."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        if not _answers(bootstrap):
            raise NoBroker(f"There is no broker at {bootstrap}: start it, or unset KAFKA_BOOTSTRAP.")

    def stop(self) -> None:
        """Not ours to stop."""

    def __getattr__(self, name: str) -> Any:
        raise NoBroker(f"This test needs a broker of its own ({name}): unset KAFKA_BOOTSTRAP.")


def open_broker(folder: Path) -> Broker | Given:
    """The given broker, or one of our own in `folder`. Raises NoBroker."""
    given = os.environ.get("KAFKA_BOOTSTRAP")
    if given:
        return Given(given)
    broker = Broker(folder)
    broker.start()
    return broker


class Broker:
    """A broker in a folder: stopped, killed, paused and started again on the same port and data.

    In a folder that has one already, it is that one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._libraries = _libraries()
        self._archive = self._libraries.with_suffix(".jsa")  # of loaded classes: a start takes half the time
        self._new_archive = self._libraries.with_name(f"partial-{os.getpid()}.jsa")
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = folder / "server.properties"
        if not self._settings.exists():
            self._format()
        if "TLS://" not in self._settings.read_text():
            raise NoBroker(f"The broker in {folder} was made by an earlier release: remove the folder.")
        told = dict(line.split("=", 1) for line in self._settings.read_text().splitlines() if "=" in line)
        self.port, self.sasl_port, self.tls_port = (
            int(each.rsplit(":", 1)[1]) for each in told["advertised.listeners"].split(",")
        )

    def _format(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        port, sasl, tls, controller = free_ports(4)
        keystore = self.folder / "key.p12"
        _make_certificate(keystore, self.certificate)
        settings = self.folder / "new.properties"
        settings.write_text(
            SETTINGS.format(
                port=port,
                sasl=sasl,
                tls=tls,
                controller=controller,
                keystore=keystore,
                store_password=STORE_PASSWORD,
                data=self.folder / "data",
                user=USER,
                password=PASSWORD,
            )
        )
        # One that begins with a minus sign would be taken for an option.
        identity = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
        formatting = self._java(
            "kafka.tools.StorageTool", "format", "-t", identity, "-c", os.fspath(settings),
            "--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]",
        )  # fmt: skip
        if formatting.wait(START_TIMEOUT_S):
            raise NoBroker(f"The broker's folder could not be made: {self._last_words()}")
        settings.rename(self._settings)

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def sasl_bootstrap(self) -> str:
        """Where SASL PLAIN with `USER` and `PASSWORD` is asked for."""
        return f"127.0.0.1:{self.sasl_port}"

    @property
    def tls_bootstrap(self) -> str:
        """Where TLS is spoken, with a certificate of its own, and SCRAM-SHA-512 is asked for."""
        return f"127.0.0.1:{self.tls_port}"

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Returns when the broker answers."""
        assert self._process is None
        self._process = self._java(BROKER, os.fspath(self._settings))
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(self.bootstrap):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NoBroker(f"The broker did not start: {self._last_words()}")
            time.sleep(0.1)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As if the power had gone, for the process."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(how)
        status = self._process.wait(60)
        self._process = None
        if status == 128 + signal.SIGTERM and self._new_archive.exists():
            self._new_archive.replace(self._archive)

    def _last_words(self) -> str:
        """The end of its log: where a test fails elsewhere, the file is out of reach."""
        log = self.folder / "log"
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([f"the end of {log} is", *lines])

    def _java(self, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        options = [*HEAP]
        if self._archive.exists():
            options += ["-Xshare:auto", f"-XX:SharedArchiveFile={self._archive}"]
        elif main == BROKER:
            options += [f"-XX:ArchiveClassesAtExit={self._new_archive}"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                ["java", *options, "-cp", f"{self._libraries}/*", main, *arguments],
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )


def _make_certificate(keystore: Path, certificate: Path) -> None:
    """A key and its certificate for 127.0.0.1, signed by itself. Raises NoBroker."""
    keystore.unlink(missing_ok=True)  # of an attempt that was interrupted
    store = ["-keystore", os.fspath(keystore), "-storetype", "PKCS12", "-storepass", STORE_PASSWORD]
    made = ["-genkeypair", "-alias", "broker", "-keyalg", "EC", "-dname", "CN=127.0.0.1"]
    made += ["-ext", "san=ip:127.0.0.1", "-validity", "3650", *store]
    shown = ["-exportcert", "-rfc", "-alias", "broker", "-file", os.fspath(certificate), *store]
    for command in (made, shown):
        done = subprocess.run(["keytool", *command], capture_output=True, text=True)
        if done.returncode:
            raise NoBroker(f"The broker's certificate could not be made: {done.stdout} {done.stderr}")


def _libraries() -> Path:
    """The folder with the broker's jars, fetched when it is not there yet. Raises NoBroker."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal-broker"
    text = POM.read_bytes()
    folder = cache / uuid.uuid5(uuid.NAMESPACE_OID, text.decode()).hex
    if shutil.which("java") is None:
        raise NoBroker("Kafka's tests need Java 17: install it (on Debian: default-jre-headless).")
    if folder.exists():
        return folder
    if shutil.which("mvn") is None:
        raise NoBroker("Kafka's tests fetch a broker with Maven: install it (on Debian: maven).")
    partial = cache / f"partial-{os.getpid()}"
    fetch = ["mvn", "-q", "-B", "-f", os.fspath(POM), "dependency:copy-dependencies"]
    done = subprocess.run(
        [*fetch, f"-DoutputDirectory={partial}", "-DincludeScope=runtime"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = next((line for line in done.stdout.splitlines() if "ERROR" in line), "Maven failed")
        raise NoBroker(f"Maven could not fetch the broker for Kafka's tests: {told}")
    try:
        partial.rename(folder)
    except OSError:  # another one was quicker
        shutil.rmtree(partial)
    return folder


def _answers(bootstrap: str) -> bool:
    host, _, port = bootstrap.partition(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1.0).close()
        admin = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=2_000)
    except (KafkaError, OSError):
        return False
    try:
        admin.list_topics()
        return True
    except KafkaError:
        return False
    finally:
        admin.close()


def _end_with_parent() -> None:
    """The broker does not outlive the thread that started it, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
