"""What the Kafka source and sink share: how to connect, what a topic is, and which errors are retriable.

Every workaround for kafka-python (3.0) is here, each with the upstream behaviour that it works around:

- `_Reason`: the client reports why a connection failed only in its log, and raises a timeout after it. So
  its log is captured and not passed on: Shoal reports the reason itself, once.
- `KafkaCluster.connect`: a consumer or producer whose constructor raises keeps its thread and sockets, and
  nobody has a reference to close them by. So the network client is made here.
- `_Connections`: a refused login or certificate is retried until the bootstrap timeout. And what arrives
  together with the end of a connection, as a refusal does on a busy machine, is discarded.
- `commit`: `KafkaProducer.commit_transaction` waits without a timeout for a broker that was killed.
- `let_go`: `KafkaProducer.close(timeout=0)` raises where a record could not be sent, and goes on trying.
- `Watch`: a consumer has been seen to poll forever, without an error and without a record.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kafka import KafkaAdminClient
from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    KafkaConfigurationError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
    UnsupportedCodecError,
    UnsupportedSaslMechanismError,
    UnsupportedVersionError,
    for_code,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from engine.closing import Closing
from engine.config import KafkaSettings
from engine.errors import BrokerError, ConfigError, ShoalError

BOOTSTRAP_TIMEOUT_MS = 5_000
REQUEST_TIMEOUT_MS = 15_000
_REFUSALS = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError)

# OpenSSL's codes: not valid yet or no longer (a clock or the broker's renewal resolves it); of another host
_NOT_NOW, _OTHER_NAME = (9, 10), (62, 64)

Client = TypeVar("Client")


class _Reason(logging.Handler):
    """Keeps the last error that kafka-python logged."""

    last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        found = next((each for each in arguments if isinstance(each, BaseException)), None)
        if found is None or isinstance(found, KafkaTimeoutError):
            return
        if self.last is None or not _is_final(self.last):  # after which there are only lost connections
            self.last = found


_reason = _Reason(logging.WARNING)
_log = logging.getLogger("kafka")
_log.addHandler(_reason)
_log.propagate = False


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """Connections that are read to their end, and not retried once each server has refused permanently."""

    def __init__(self, net: NetworkSelector, **configs: Any) -> None:
        super().__init__(net, **configs)
        self._refused: dict[str, BaseException] = {}  # by the server's id

    def get_connection(self, node_id: Any, *arguments: Any, **options: Any) -> Any:
        servers = {each.node_id for each in self.cluster.bootstrap_brokers()}
        if servers <= self._refused.keys() and not self.bootstrapped:
            raise self._refused[node_id]
        connection = super().get_connection(node_id, *arguments, **options)
        connection.init_future.add_errback(lambda error: self._note(node_id, error))
        return connection

    async def _build_transport(self, *arguments: Any, **options: Any) -> Any:
        transport = await super()._build_transport(*arguments, **options)
        receive = transport._sock_recv

        def receive_first() -> tuple[bytes, BaseException | None]:
            data, error = receive()
            return data, None if data else error  # which comes again

        transport._sock_recv = receive_first
        return transport

    def _note(self, server: str, error: BaseException) -> None:
        if _is_final(error):
            self._refused[server] = error


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now. One that is deleted and made again has another id."""

    cluster: str
    name: str
    id: str
    partitions: tuple[int, ...]


class KafkaCluster(Closing):
    """The brokers of the settings. Methods raise KafkaError; `refusal` says whether it is retriable."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self.options = _options(settings)
        self._admin: KafkaAdminClient | None = None
        self._cluster = ""

    def close(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def connect(self, make: Callable[..., Client], **options: Any) -> Client:
        """Return a connected consumer or producer of kafka-python."""
        _reason.last = None
        opened: list[KafkaNetClient] = []

        def remember(**configs: Any) -> KafkaNetClient:
            net = NetworkSelector(**configs)
            opened.append(KafkaNetClient(net, _Connections(net, **configs), **configs))
            return opened[-1]

        try:
            return make(**self.options, **options, kafka_client=remember)
        except (KafkaTimeoutError, KafkaConnectionError, *_REFUSALS) as error:
            reason = error if _is_final(error) else _reason.last or error
            for each in opened:  # or its thread and its sockets stay for ever
                each.close()
            raise self.refusal(reason) or KafkaConnectionError(brief(reason)) from error

    @property
    def admin(self) -> KafkaAdminClient:
        if self._admin is None:
            self._admin = self.connect(KafkaAdminClient)
            self._cluster = str(self._admin.describe_cluster()["cluster_id"])
        return self._admin

    def topic(self, name: str) -> Topic | None:
        """Return a topic's metadata; None if it does not exist."""
        found = self.admin.describe_topics([name])[0]
        error = for_code(found["error_code"])
        if error.__name__ == "UnknownTopicOrPartitionError":
            return None
        if found["error_code"]:
            raise error(name)
        partitions = sorted(int(each["partition_index"]) for each in found["partitions"])
        return Topic(self._cluster, name, str(found["topic_id"]), tuple(partitions))

    def make_topics(self, topics: Mapping[str, Mapping[str, Any]]) -> None:
        """Create the missing topics, with `num_partitions` and `configs`."""
        missing = {name: made for name, made in topics.items() if self.topic(name) is None}
        for name, made in missing.items():
            try:
                self.admin.create_topics({name: made}, wait_for_metadata=True)
            except TopicAlreadyExistsError:
                continue
            except KafkaError as error:
                if error.retriable or self.refusal(error):
                    raise
                raise BrokerError(
                    f"The topic {name} cannot be created ({brief(error)}): create it manually."
                ) from error

    def refusal(self, error: BaseException) -> ShoalError | None:
        """Return the fatal error, or None if it is retriable."""
        where, words = f"The broker at {self.settings.bootstrap}", brief(error)
        if isinstance(error, _REFUSALS):
            who = f"user {self.settings.username!r}" if self.settings.username else "clients without a user"
            return BrokerError(
                f"{where} refuses {who} ({words}): set security, sasl_mechanism, username and password"
                " of [source.kafka]."
            )
        if untrusted := _untrusted(error):
            what = "set tls_ca_file to its authority's"
            if untrusted.verify_code in _OTHER_NAME:
                what = "name it in bootstrap as the certificate does, or set tls_check_hostname = false"
            return BrokerError(
                f"{where} has a certificate that is not trusted ({words}): {what}, in [source.kafka]."
            )
        if isinstance(error, AuthorizationError):
            return BrokerError(f"{where} does not allow this ({words}): grant the user the right.")
        if isinstance(error, UnsupportedCodecError | UnsupportedVersionError):
            return BrokerError(f"{where} and this release are incompatible ({words}).")
        if isinstance(error, KafkaConfigurationError):
            return ConfigError(f"[source.kafka] cannot be used: {words}.")
        return None


def commit(producer: Any, timeout_ms: int) -> None:
    """Commit a transaction as `commit_transaction` does, but with a timeout. Raises KafkaError."""
    result = producer._transaction_manager.begin_commit()
    producer._sender.wakeup()
    if not result.wait(timeout_ms):
        raise KafkaTimeoutError(f"no answer to a commit for {timeout_ms / 1000:g} s")


def let_go(producer: Any) -> None:
    """Close a producer at once; unsent records are dropped."""
    try:
        producer.close(timeout=0)
    except KafkaError:
        producer._sender.force_close()


class Watch:
    """Detect a stall: unread records exist and none has arrived for `timeout_s`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.moved()

    def moved(self) -> None:
        self._last = time.monotonic()

    def check(self) -> None:
        idle_s = time.monotonic() - self._last
        if idle_s > self._timeout_s:
            raise KafkaError(f"there are unread records and none arrived for {idle_s:.0f} s")


def _untrusted(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Return the certificate error that a retry will not resolve, else None."""
    cause = error.__context__  # kafka-python raises an error of its own while it handles this one
    if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code not in _NOT_NOW:
        return cause
    return None


def _is_final(error: BaseException) -> bool:
    return isinstance(error, _REFUSALS) or _untrusted(error) is not None


def _options(settings: KafkaSettings) -> dict[str, Any]:
    """Translate the settings to kafka-python keyword arguments. Raises ConfigError: a file is missing."""
    options: dict[str, Any] = {
        "bootstrap_servers": [each.strip() for each in settings.bootstrap.split(",")],
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "reconnect_backoff_max_ms": 250,  # a broker that is back is used at once; `Backoff` spaces attempts
        "security_protocol": settings.security,
    }
    if settings.sasl_mechanism:
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.username
        options["sasl_plain_password"] = _password(settings)
    if "SSL" in settings.security.removeprefix("SASL_"):
        options["ssl_check_hostname"] = settings.tls_check_hostname
        files = {"ssl_cafile": settings.tls_ca_file, "ssl_certfile": settings.tls_cert_file}
        for name, path in {**files, "ssl_keyfile": settings.tls_key_file}.items():
            if path is not None and not path.is_file():
                raise ConfigError(f"There is no file {path}: see the tls_... settings of [source.kafka].")
            options[name] = None if path is None else str(path)
    return options


def _password(settings: KafkaSettings) -> str:
    if settings.password is not None:
        return settings.password.get_secret_value()
    path = settings.password_file or Path()
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The password file {path} cannot be read: {error}.") from None


def brief(error: BaseException) -> str:
    """Return an error's first line without kafka-python's error number and repeated class name."""
    words = (str(error).splitlines() or [""])[0]
    return words.rsplit("Error: ", 1)[-1].strip() or type(error).__name__
