"""What a daemon would read from Kafka, without reading it."""

from __future__ import annotations

from kafka.errors import KafkaError

from connectors.kafka.client import KafkaCluster, brief
from connectors.kafka.reader import Position, check_topic
from engine.config import KafkaSettings
from engine.errors import BrokerError


def plan(settings: KafkaSettings, raw: bytes | None) -> str:
    """In words; `raw`: the position in the store. Raises ShoalError, as the daemon would."""
    known = Position.load(raw) if raw else None
    with KafkaCluster(settings) as cluster:
        try:
            topic = check_topic(settings, known, cluster.topic(settings.topic))
        except KafkaError as error:
            refusal = cluster.refusal(error)
            raise refusal or BrokerError(
                f"No broker can be asked at {settings.bootstrap} ({brief(error)}): start it, or set "
                "[source.kafka] bootstrap."
            ) from error
    offsets = known.offsets if known else {}
    places = ", ".join(f"{p} from {offsets.get(p, 'its beginning')}" for p in topic.partitions)
    name = settings.topic
    out = f"; it would publish to {name}.assignments, {name}.clusters and {name}.dlq"
    return f"It would read the topic {name}: partition {places}{out if settings.publish else ''}."
