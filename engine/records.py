"""What a record is: a key, an embedding, a time and a payload. Every source reads its records here.

Files, Kafka, HTTP and the library differ in how records reach them, not in what a record may hold. So each
value has one reader, and each mistake one wording. A reader returns the value in its stored form or raises
`Unusable` with a clause that names the field and the value. `Parser` reads one JSON document, `engine.rows`
reads whole columns and makes batches; both call the readers below.

This module loads no compiler (numba), so the process of the API may import it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import orjson

from engine.config import MAX_DIM, LimitsSettings
from engine.config_values import CONTROL
from engine.errors import Unusable, shown
from engine.times import NO_NUMBERS, read_time
from engine.types import Float64

BOM = b"\xef\xbb\xbf"  # the mark of the byte order, in UTF-8
PAYLOAD_LEVELS = 245  # of nesting; an answer adds its own, and JSON libraries stop at about 255
# Both pairs bound memory: records with generated field names would otherwise fill it.
IGNORED_NAMES, NAME_SHOWN = 1000, 100  # distinct names that are counted, and the characters of one
_PLANS, _PLANNED = 1000, 1000  # sets of field names remembered, and the characters of one

_NO_JSON = "Type is not JSON serializable: "  # as orjson says it
_document = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Record:
    """One record, its values checked; only the dimension depends on the collection."""

    key: bytes
    vector: Float64 | None  # (d,), None: delete the key
    time_ms: int | None = None  # since 1970; None: the record has no time
    payload: bytes = b""  # JSON, b"" for none

    @property
    def size(self) -> int:
        """Bytes that it takes in a queue, about."""
        return len(self.key) + len(self.payload) + (0 if self.vector is None else self.vector.nbytes)


@dataclass(frozen=True, slots=True)
class Fields:
    """The names under which each value is looked for, the first one found counts; case does not matter."""

    key: tuple[str, ...] = ("key", "keys", "id", "ids", "item_id", "_id")
    vector: tuple[str, ...] = ("embedding", "embeddings", "emb", "vector", "vectors", "values")
    time: tuple[str, ...] = ("time", "times", "timestamp", "ts", "created_at")
    payload: tuple[str, ...] = ("payload", "payloads", "metadata")
    delete: tuple[str, ...] = ("delete",)
    text: tuple[str, ...] = ("text", "texts")  # this and what follows becomes part of the payload
    title: tuple[str, ...] = ("title", "titles")
    label: tuple[str, ...] = ("label", "labels")
    image: tuple[str, ...] = ("image", "images")

    def named(self, **chosen: str | None) -> Fields:
        """Return fields with one name only for each role given, as in `named(key="sku")`."""
        return replace(self, **{role: (name,) for role, name in chosen.items() if name is not None})

    def plan(self, names: Iterable[str]) -> Plan:
        """Which of the names has which role."""
        given = {name.strip().lower(): name for name in reversed(list(names))}
        found = {}
        for role in self.__dataclass_fields__:
            wanted = (name.lower() for name in getattr(self, role))
            if (name := next((given[each] for each in wanted if each in given), None)) is not None:
                found[role] = name
        used = set(found.values())
        return Plan(found, tuple(name for name in names if name not in used))


EXTRAS = ("text", "title", "label", "image")  # roles whose values join the payload, under these names
FIELDS = Fields()


@dataclass(frozen=True, slots=True)
class Plan:
    """`roles`: role -> the name it has here. `ignored`: names that have no role."""

    roles: Mapping[str, str]
    ignored: tuple[str, ...]


@dataclass(slots=True)
class Parser:
    """Reads records that come as JSON documents or as mappings of Python values.

    `ignored` counts the names that no role has, over all records read.
    """

    limits: LimitsSettings
    fields: Fields = FIELDS
    ignored: Counter[str] = field(default_factory=Counter)
    _plans: dict[tuple[str, ...], Plan] = field(default_factory=dict)

    def parse(self, raw: bytes, key: Any = None) -> Record:
        """Parse a record from a JSON object. `key`: the key if it is given apart from it. Raises Unusable."""
        if len(raw) > self.limits.record_max_bytes:
            most = self.limits.record_max_bytes
            raise Unusable(f"the record has {len(raw)} bytes, more than the {most} allowed")
        return self._record(_fields_of(raw), key, _loaded, self._raw_payload)

    def of(self, values: Mapping[str, Any], key: Any = None) -> Record:
        """Read a record from a mapping of Python values. Raises Unusable."""
        return self._record(values, key, _as_is, lambda value: read_payload(value, self.limits))

    def plan(self, names: Sequence[str]) -> Plan:
        """Which of the names has which role; names without a role are not counted here."""
        known = self._plans.get(tuple(names))
        if known is None:
            known = self.fields.plan(names)
            if len(self._plans) < _PLANS and sum(map(len, names)) < _PLANNED:
                self._plans[tuple(names)] = known
        return known

    def ignore(self, names: Iterable[str], count: int = 1) -> None:
        """Count names that have no role."""
        for name in (each[:NAME_SHOWN] for each in names):
            if name in self.ignored or len(self.ignored) < IGNORED_NAMES:
                self.ignored[name] += count

    def _record(
        self,
        values: Mapping[str, Any],
        key: Any,
        load: Callable[[Any], Any],
        payload_of: Callable[[Any], bytes],
    ) -> Record:
        plan = self.plan(tuple(values))
        roles = {role: values[name] for role, name in plan.roles.items()}
        self.ignore(plan.ignored)
        if key is None:
            if "key" not in roles:
                raise Unusable("the field key is missing")
            name = read_key(load(roles["key"]), self.limits)
        else:
            name = read_key(key, self.limits)
            if "key" in roles and str(load(roles["key"])).encode(errors="replace") != name:
                self.ignore([plan.roles["key"]])  # it names another item than the given key
        if "delete" in roles and read_delete(load(roles["delete"])):
            return Record(name, None)
        if "vector" not in roles:
            raise Unusable("the field embedding is missing")
        vector = read_vector(load(roles["vector"]))
        time_ms = read_time(load(roles["time"])) if "time" in roles else None
        payload = payload_of(roles["payload"]) if "payload" in roles else b""
        extras = {role: dump_json(roles[role], role) for role in EXTRAS if role in roles}
        return Record(name, vector, time_ms, join_payload(payload, extras, self.limits))

    def _raw_payload(self, raw: Any) -> bytes:
        return read_document(bytes(raw), self.limits)


# What msgspec calls a value, in the words of `kind_of`.
_JSON_TYPES = {"array": "list", "str": "string", "bool": "true or false"}
_JSON_TYPES |= dict.fromkeys(("int", "float", "range"), "a number")  # range: it is out of that


def _fields_of(raw: bytes) -> dict[str, msgspec.Raw]:
    """Return the fields of a JSON object, each as its raw bytes."""
    try:
        return _document.decode(raw[len(BOM) :] if raw.startswith(BOM) else raw)
    except msgspec.ValidationError as problem:
        found = str(problem).rsplit(" ", 1)[-1].strip("`")
        raise Unusable(f"the record must be a JSON object, not {_JSON_TYPES.get(found, found)}") from None
    except RecursionError:
        raise Unusable("broken JSON: it nests too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:4]:
            raise Unusable("the text is UTF-16, not UTF-8") from None
        if not is_utf8(raw):
            raise Unusable("the text is not UTF-8") from None
        raise Unusable(f"broken JSON: {brief(problem).removeprefix('JSON is malformed: ')}") from None


def _loaded(raw: Any) -> Any:
    try:
        return orjson.loads(memoryview(raw))
    except orjson.JSONDecodeError as problem:
        if not is_utf8(bytes(raw)):
            raise Unusable("the text is not UTF-8") from None
        raise Unusable(f"broken JSON: {problem.msg.rstrip('.')}") from None


def is_utf8(raw: bytes) -> bool:
    """Return whether bytes are UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _as_is(value: Any) -> Any:
    return value


def read_key(value: Any, limits: LimitsSettings) -> bytes:
    """Return the UTF-8 of a string, bytes, an integer or a UUID. Raises Unusable."""
    if isinstance(value, str):
        try:
            key = value.encode()
        except UnicodeEncodeError:
            raise Unusable(f"the key {shown(value)} is not valid Unicode") from None
    elif isinstance(value, (bytes, bytearray, memoryview)):
        key = bytes(value)
        try:
            value = key.decode()
        except UnicodeDecodeError:
            raise Unusable(f"the key {shown(key)} is not valid UTF-8") from None
    elif isinstance(value, (int, np.integer, UUID)) and not isinstance(value, NO_NUMBERS):
        value = str(value)
        key = value.encode()
    elif value is None:
        raise Unusable("the key is missing")
    else:
        raise Unusable(f"the key {shown(value)} must be a string or an integer, not {kind_of(value)}")
    if not key:
        raise Unusable("the key is empty")
    if len(key) > limits.key_max_bytes:
        raise Unusable(f"the key has {len(key)} bytes, more than the {limits.key_max_bytes} allowed")
    if not value.isprintable() and CONTROL.search(value):
        raise Unusable(f"the key {shown(value)} has a control character")
    return key


def read_delete(value: Any) -> bool:
    """Return the value of the field delete. Raises Unusable."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise Unusable(f"delete must be true or false, not {shown(value)}")


def read_vector(value: Any) -> Float64:
    """Convert numbers to (d,) float64, finite and not all zero. Raises Unusable."""
    if isinstance(value, np.ndarray) and value.ndim:
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise Unusable("the embedding has masked values")
        odd = value.ndim != 1 or value.dtype.kind not in "fiu"
    elif isinstance(value, (list, tuple)):
        odd = not set(map(type, value)) <= {int, float} and any(map(_is_no_number, value))
    else:
        raise Unusable(f"the embedding must be a list of numbers, not {kind_of(value)}")
    if odd:
        wrong = next(filter(_is_no_number, list(value)), value)
        raise Unusable(f"the embedding must be a list of numbers, and there is {shown(wrong)} in it")
    if not 1 <= len(value) <= MAX_DIM:
        raise Unusable(wrong_dimension(len(value), None))
    try:
        vector = np.asarray(value, np.float64)
    except OverflowError:
        raise Unusable(NOT_FINITE) from None
    if not np.isfinite(vector).all():
        raise Unusable(NOT_FINITE)
    if not vector.any():
        raise Unusable(ZERO)
    return vector


def text_vector(text: str) -> list[Any]:
    """Parse a vector in text: `[1,2]` as in JSON and pgvector, `{1,2}`, or numbers with blanks.

    Raises Unusable: also for commas without brackets, which may be decimal ones.
    """
    inner = text.strip()
    if inner.startswith("["):
        try:
            found = orjson.loads(inner)
            return found if isinstance(found, list) else [found]
        except orjson.JSONDecodeError:
            pass
    bare = inner.strip("[]{}()")
    if "," in bare and bare == inner:
        forms = "[0.1, 0.9], {0.1, 0.9} or 0.1 0.9"
        raise Unusable(f"the embedding must be written {forms}, not {shown(text)}")
    numbers = bare.rstrip(", ").split(",") if "," in bare else bare.replace(";", " ").split()
    try:
        return [float(number) for number in numbers]
    except ValueError:
        raise Unusable(f"the embedding must be a list of numbers, not {shown(text)}") from None


NOT_FINITE, ZERO = "the embedding has a NaN or an infinity", "the embedding is zero"


def wrong_dimension(found: int, wanted: int | None) -> str:
    """Return why a vector does not fit. `wanted`: the collection's dimension, None: it has none yet."""
    expected = f"the collection's {wanted}" if wanted else f"1 to {MAX_DIM}"
    return f"the embedding has {found} dimension{'s' * (found != 1)}, not {expected}"


def _is_no_number(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating))


def read_payload(value: Any, limits: LimitsSettings) -> bytes:
    """Return a payload as JSON: bytes are a document, other values are dumped. b"": none. Raises Unusable."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return read_document(bytes(value), limits)
    raw = dump_json(value)
    if b"null" in raw and (place := _not_finite(value)) is not None:  # orjson writes null for these
        where = f" at {place}" if place else ""
        raise Unusable(f"the payload is not JSON: it has a NaN or an infinity{where}; give None for no value")
    return read_document(raw, limits)


def _not_finite(value: Any) -> str | None:
    """Return where a NaN or an infinity is in a value, like "scores.2"; None if there is none."""
    if isinstance(value, (float, np.floating)):
        return None if math.isfinite(value) else ""
    if isinstance(value, np.ndarray) and value.ndim:
        value = value.tolist()
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    for name, part in parts:
        if (place := _not_finite(part)) is not None:
            return f"{name}.{place}" if place else str(name)
    return None


def read_document(raw: bytes, limits: LimitsSettings) -> bytes:
    """Check a JSON document and return its bytes. null, {} and nothing: b"". Raises Unusable.

    What no answer could hold is refused: text that is no JSON, and what nests too deep.
    """
    if len(raw) > limits.payload_max_bytes:
        raise Unusable(f"the payload has {len(raw)} bytes, more than the {limits.payload_max_bytes} allowed")
    if not raw.strip():
        return b""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as problem:
        raise Unusable(f"the payload is not JSON: {brief(problem)}") from None
    if raw.count(b"[") + raw.count(b"{") > PAYLOAD_LEVELS and _levels(document) > PAYLOAD_LEVELS:
        raise Unusable(
            f"the payload is not JSON: it nests too deep, at most {PAYLOAD_LEVELS} levels are safe"
        )
    if document is None or document == {}:
        return b""
    return raw.replace(b"\r", b" ").replace(b"\n", b" ") if b"\n" in raw or b"\r" in raw else raw


def text_payload(text: str) -> Any:
    """Read a payload of a text column: JSON objects and lists as bytes, other text unchanged."""
    if text[:1] in ("{", "["):
        raw = text.encode(errors="replace")
        try:
            orjson.loads(raw)
        except orjson.JSONDecodeError:
            return text
        return raw
    return text or None


def join_payload(payload: bytes, extras: Mapping[str, bytes], limits: LimitsSettings) -> bytes:
    """Add `extras`, name -> JSON, to a payload; the payload's own entries win. Raises Unusable."""
    extras = {name: raw for name, raw in extras.items() if raw not in (b"null", b"")}
    if not extras:
        return payload
    if payload and not payload.lstrip().startswith(b"{"):
        extras["payload"] = payload
    elif payload:
        extras = {name: raw for name, raw in extras.items() if name not in orjson.loads(payload)}
    parts = [b'"%b":%b' % (name.encode(), raw) for name, raw in extras.items()]
    if payload and "payload" not in extras:
        parts.append(payload.strip()[1:-1])
    return read_document(b"{" + b",".join(parts) + b"}", limits)


def dump_json(value: Any, name: str = "payload") -> bytes:
    """Return a value of a payload as JSON. Raises Unusable, which calls it by this name."""
    if isinstance(value, msgspec.Raw):
        return bytes(value)
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError) as problem:
        reason = brief(problem)
        if "Recursion limit" in reason:
            reason = "it nests too deep"
        elif "surrogates" in reason:
            raise Unusable(f"the {name} is not UTF-8") from None
        elif reason.startswith(_NO_JSON):
            kind = reason.removeprefix(_NO_JSON)
            reason = f"there is a value of type {kind} in it; give text, numbers, lists and objects of them"
        raise Unusable(f"the {name} is not JSON: {reason}") from None


def _levels(document: Any) -> int:
    """Return how deep a JSON document nests: 0 for a plain value."""
    levels, held = -1, [document]
    while held:
        levels += 1
        inner = [
            list(one.values()) if isinstance(one, dict) else one
            for one in held
            if isinstance(one, (dict, list))
        ]
        held = [each for one in inner for each in one] or ([None] if inner else [])
    return levels


def kind_of(value: Any) -> str:
    """Return the type of a value in the words of JSON."""
    names = {dict: "object", list: "list", str: "string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def brief(problem: BaseException) -> str:
    """Return the first line of an error, without a full stop."""
    return (str(problem).splitlines() or [type(problem).__name__])[0].rstrip(".")
