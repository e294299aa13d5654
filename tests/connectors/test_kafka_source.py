"""The Kafka source against a real broker: formats, bad records, positions, topics that change."""

from __future__ import annotations

import time

import numpy as np
import orjson
import pytest

from tests.broker.topics import RAW, Sent, Topics, document, until
from tests.connectors.test_kafka_values import ITEM, SCHEMA, Schemas, avro, framed
from tests.support.kafka import Open, grid, numbered, vector


def test_the_formats(topics: Topics, reading: Open) -> None:
    topic = topics.make()
    a, b, c = vector(), vector(), vector().astype("<f4")
    topics.produce(
        topic,
        [
            Sent(b"json", document(a, payload={"text": "ä"}), time_ms=1_700_000_000_000),
            Sent("schlüssel".encode(), document(b), [("x-time", b"12345")], time_ms=1_700_000_000_000),
            Sent(b"raw", c.tobytes(), [RAW], time_ms=7),
            Sent(b"typed", document(a), [("content-type", b"application/json; charset=utf-8")]),
            Sent(b"gone", document(a)),
            Sent(b"gone", None),
            Sent(b"moved", document(a)),
            Sent(b"moved", document(b), time_ms=8),
            Sent(b"back", None),
            Sent(b"back", document(b), time_ms=9),
            Sent(b"never", None),
        ],
    )
    read = reading(topic)
    read.take_until(lambda: "kafka" in read.positions and read.offsets() == {"0": 11})
    typed = read.live.pop(b"typed")
    assert typed[0] == grid(a)
    assert abs(typed[1] - time.time() * 1000) < 60_000
    assert read.live == {
        b"json": (grid(a), 1_700_000_000_000, '{"text":"ä"}'.encode()),
        "schlüssel".encode(): (grid(b), 12_345_000, b""),
        b"raw": (grid(c), 7, b""),
        b"moved": (grid(b), 8, b""),
        b"back": (grid(b), 9, b""),
    }
    assert not read.rejected
    assert b"never" in [key for batch in read.batches for key in batch.deletes]


POISON = {
    "5 dimensions, not the collection's 4": Sent(b"p", document([1, 2, 3, 4, 5])),
    "NaN or an infinity": Sent(b"p", np.array([1, np.nan, 0, 0], "<f4").tobytes(), [RAW]),
    "the embedding has a NaN or an infinity": Sent(b"p", np.array([1, np.inf, 0, 0], "<f4").tobytes(), [RAW]),
    "broken JSON: number is infinity": Sent(b"p", b'{"embedding": [1, 1e999, 0, 0]}'),
    "the embedding is zero": Sent(b"p", document([0, 0, 0, 0])),
    "broken JSON": Sent(b"p", b'{"embedding": [1, NaN, 0, 0]}'),
    "the text is UTF-16, not UTF-8": Sent(b"p", b"\xff\xfe\x00"),
    "the record must be a JSON object, not list": Sent(b"p", b"[1, 2, 3, 4]"),
    "the field embedding is missing": Sent(b"p", b'{"weights": [1, 2, 3, 4]}'),
    "a list of numbers": Sent(b"p", b'{"embedding": [1, "2", 3, 4]}'),
    "must be a list of": Sent(b"p", b'{"embedding": [[1, 2], [3, 4]]}'),
    "0 dimensions": Sent(b"p", b'{"embedding": []}'),
    "the payload has 300013 bytes": Sent(b"p", document([1, 2, 3, 4], payload={"text": "a" * 300_002})),
    "the content-type is 'text/csv'": Sent(b"p", b"1,2,3,4", [("content-type", b"text/csv")]),
    "a value of 7 bytes holds no float32 numbers": Sent(b"p", b"1234567", [RAW]),
    "an ISO 8601 string, not 'yesterday'": Sent(b"p", document([1, 2, 3, 4]), [("x-time", b"yesterday")]),
    "3000000 bytes, more than the 1048576 allowed": Sent(b"p", bytes(3_000_000), [RAW]),
    "the key is missing": Sent(None, document([1, 2, 3, 4])),
    "the key is empty": Sent(b"", document([1, 2, 3, 4])),
    "the key has 512 bytes": Sent(b"k" * 512, document([1, 2, 3, 4])),
    "is not valid UTF-8": Sent(b"\xff", document([1, 2, 3, 4])),
    "the key is empty ": Sent(b"", None),
}


def test_poisoned_records_are_dead_letters_and_the_rest_goes_on(topics: Topics, reading: Open) -> None:
    topic = topics.make(max_message_bytes=8_000_000)
    sent = [Sent(b"first", document(vector()))]
    for number, poison in enumerate(POISON.values()):
        sent += [poison, Sent(b"good %d" % number, document(vector()))]
    topics.produce(topic, sent)
    read = reading(topic)
    read.take_until(lambda: len(read.live) == 1 + len(POISON), size=7)
    assert len(read.rejected) == len(POISON)
    for number, (reason, poison) in enumerate(POISON.items()):
        letter = read.rejected[number]
        assert reason.rstrip() in letter.reason, letter.reason
        assert letter.origin == f"{topic}/0/{2 * number + 1}"
        assert (letter.key, letter.value, letter.headers) == (poison.key, poison.value, poison.headers)


def test_records_wait_while_the_registry_of_their_schemas_is_away(
    topics: Topics, reading: Open, caplog: pytest.LogCaptureFixture
) -> None:
    schemas = Schemas()
    schemas.add(3, SCHEMA)
    schemas.status = 500
    topic = topics.make()
    keys = [(7).to_bytes(4, "big"), (8).to_bytes(4, "big")]
    topics.produce(topic, [Sent(key, framed(3, avro(ITEM))) for key in keys])
    read = reading(
        topic, kafka__key_format="int32", kafka__value_format="avro", kafka__registry_url=schemas.url
    )
    until(lambda: read.take() is None and "records are held" in caplog.text, 120)
    assert not read.live
    schemas.status = 200
    read.take_until(lambda: len(read.live) == 2)
    assert (sorted(read.live), read.rejected) == ([b"7", b"8"], [])
    schemas.close()


def test_what_is_taken_with_doubts_is_in_the_log(
    topics: Topics, reading: Open, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topics.make()
    topics.produce(topic, [Sent(b"k%d" % i, document(vector(), time=5, color="red")) for i in range(20)])
    read = reading(topic)
    read.take_until(lambda: len(read.live) == 20, size=7)
    assert "the time 1970-01-01T00:00:05Z is before 1990" in caplog.text
    assert caplog.text.count("hardly right") == 1
    assert caplog.text.count("fields that are not understood are left out: 'color'") == 1


def test_a_dead_letter_beyond_the_bound_has_no_bytes(topics: Topics, reading: Open) -> None:
    topic = topics.make(max_message_bytes=8_000_000)
    topics.produce(topic, [Sent(b"key", bytes(3_000_000)), Sent(b"other", document(vector()))])
    read = reading(topic, dead_letter_max_bytes=2_000_000)
    read.take_until(lambda: read.live)
    (letter,) = read.rejected
    assert (letter.key, letter.value) == (None, None)
    assert letter.reason.startswith("the value has 3000000 bytes, more than the 1048576 allowed; its 3000003")
    assert letter.origin == f"{topic}/0/0"


def test_reading_goes_on_behind_what_is_stored(topics: Topics, reading: Open) -> None:
    topic = topics.make(3)
    topics.produce(topic, numbered(200))
    positions: dict[str, bytes] = {}
    seen: list[bytes] = []
    while len(seen) < 200:
        read = reading(topic, positions)
        read.take_until(lambda read=read: sum(len(batch.keys) for batch in read.batches) >= 30, size=7)
        seen += [key for batch in read.batches for key in batch.keys]
        if len(seen) + 30 > 200:
            read.take_until(lambda read=read: sum(read.offsets().values()) == 200, size=7)
            seen += [key for batch in read.batches for key in batch.keys if key not in seen]
        read.source.close()
    assert sorted(seen) == sorted(sent.key or b"" for sent in numbered(200))


def test_a_batch_that_was_not_committed_comes_again(topics: Topics, reading: Open) -> None:
    topic = topics.make()
    topics.produce(topic, numbered(20))
    read = reading(topic)
    read.take_until(lambda: read.batches, size=5)
    before = dict(read.positions)
    taken = len(read.live)
    assert read.source.poll(100, 5) is not None  # and then the process dies
    again = reading(topic, before)
    again.take_until(lambda: taken + len(again.live) == 20)
    assert not read.live.keys() & again.live.keys()


def test_new_partitions_are_found(topics: Topics, reading: Open) -> None:
    topic = topics.make(1)
    topics.produce(topic, numbered(5))
    read = reading(topic)
    read.take_until(lambda: len(read.live) == 5)
    topics.add_partitions(topic, 3)
    records = [Sent(b"new %d" % i, document(vector()), partition=i % 3) for i in range(30)]
    until(lambda: topics.produce(topic, records) is None, 120)
    read.take_until(lambda: len(read.live) == 35)
    assert read.offsets() == {"0": 15, "1": 10, "2": 10}
    again = reading(topic, read.positions)
    topics.produce(topic, [Sent(b"last", document(vector()), partition=2)])
    again.take_until(lambda: again.live)
    assert list(again.live) == [b"last"]


def test_only_committed_records_are_read_and_marks_are_passed(
    topics: Topics, reading: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.source.MARKS_S", 0.2)
    topic = topics.make()
    producer = topics.producer(transactional_id="test-marks")
    producer.init_transactions()
    for key, commit in (b"yes", True), (b"no", False), (b"also", True):
        producer.begin_transaction()
        producer.send(topic, document(vector()), key)
        producer.flush()
        producer.commit_transaction() if commit else producer.abort_transaction()
    producer.close()
    read = reading(topic)
    read.take_until(lambda: "kafka" in read.positions and read.offsets() == {"0": 6})
    assert list(read.live) == [b"yes", b"also"]
    until(lambda: read.source.lag().total == 0, 120)


def test_the_queue_is_bounded_and_nothing_is_lost(topics: Topics, reading: Open) -> None:
    topic = topics.make(2)
    topics.produce(topic, numbered(600))
    read = reading(topic, queue_records=50)
    inbox = read.source._reader._inbox
    until(lambda: len(inbox.records) >= 50, 120)
    time.sleep(1.0)
    assert len(inbox.records) <= 100
    assert read.source.lag().total == 600
    most = 0
    while len(read.live) < 600:
        most = max(most, len(inbox.records))
        read.take(40)
    assert most <= 100
    assert sum(len(batch.keys) for batch in read.batches) == 600


def test_lag_and_what_monitors_see(topics: Topics, reading: Open) -> None:
    topic = topics.make(2)
    topics.produce(
        topic, [Sent(b"old", document(vector()), partition=0, time_ms=int(time.time() * 1000) - 60_000)]
    )
    topics.produce(topic, [Sent(b"k%d" % i, document(vector()), partition=1) for i in range(9)])
    read = reading(topic)
    until(lambda: read.source.lag().total == 10, 120)
    assert read.source.lag().records == {"0": 1, "1": 9}
    read.take_until(lambda: len(read.live) == 10)
    until(lambda: read.source.lag().total == 0, 120)
    assert read.source.lag().oldest_unread_s == 0
    until(lambda: topics.group("shoal-shoal").get((topic, 1)) == 9, 120)


def test_topics_that_are_not_there_or_not_the_same(topics: Topics, reading: Open) -> None:
    assert "does not exist: make it" in reading("no-such-topic").fail()
    one, other = topics.make(), topics.make()
    topics.produce(one, numbered(5))
    read = reading(one)
    read.take_until(lambda: len(read.live) == 5)
    words = reading(other, read.positions).fail()
    assert f"read from the topic {one}, not from {other}" in words
    topics.delete(one)
    assert "was deleted" in read.fail()
    topics.make(name=one)
    topics.produce(one, numbered(50))
    again = reading(one, read.positions)
    assert "deleted and made again" in again.fail()
    assert not again.live
    moved = orjson.loads(read.positions["kafka"]) | {"cluster": "another"}
    words = reading(one, {"kafka": orjson.dumps(moved)}).fail()
    assert "Kafka cluster another" in words


def test_a_topic_made_again_while_it_is_read(topics: Topics, reading: Open) -> None:
    topic = topics.make()
    topics.produce(topic, numbered(5))
    read = reading(topic)
    read.take_until(lambda: len(read.live) == 5)
    topics.delete(topic)
    topics.make(name=topic)
    words = read.fail()
    assert "deleted and made again" in words or "was deleted" in words


def test_expired_offsets(topics: Topics, reading: Open) -> None:
    topic = topics.make()
    topics.produce(topic, numbered(10))
    read = reading(topic)
    read.take_until(lambda: len(read.live) == 10)
    read.source.close()
    topics.produce(topic, numbered(20, start=10))
    topics.forget(topic, 17)
    words = reading(topic, dict(read.positions)).fail()
    assert f"Partition 0 of the topic {topic}: records 10 to 16 expired" in words
    assert "skip_expired = true" in words
    lenient = reading(topic, dict(read.positions), kafka__skip_expired=True)
    lenient.take_until(lambda: len(lenient.live) == 13)
    assert min(lenient.live) == b"k17"
    beyond = orjson.loads(read.positions["kafka"]) | {"offsets": {"0": 99}}
    words = reading(topic, {"kafka": orjson.dumps(beyond)}).fail()
    assert "ends at offset 30, but was read up to 99" in words
