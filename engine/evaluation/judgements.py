"""Reads human judgements of items, pairs (same or different) or labels, from CSV or JSON lines.

    key,other,same          same: same, yes, true, 1; different, no, false, 0; nothing: not judged
    key,label               a key without a label is not judged

Other columns are ignored, so a proposal (`engine.evaluation.proposal`) can be read once it is filled in.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from engine.errors import InputError, shown
from engine.types import Bool, Int64

PAIR, LABEL = ("key", "other", "same"), ("key", "label")
ANSWERS = {
    **dict.fromkeys(("same", "yes", "y", "true", "1"), True),
    **dict.fromkeys(("different", "no", "n", "false", "0"), False),
}
ROWS_MAX = 100_000  # of a file of judgements
_NO_LABEL = ("nan", "inf", "-inf", "infinity")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Judged pairs of different items, each once, without contradiction."""

    first: Int64  # (m,) rows of the collection
    second: Int64
    same: Bool


@dataclass(frozen=True, slots=True)
class Labels:
    """Items with a label, each once."""

    rows: Int64  # (m,)
    labels: Int64
    names: Sequence[str] = ()  # of the labels


def read_pairs(path: Path, keys: Sequence[str]) -> Pairs:
    """Read judged pairs of items with these keys.

    Raises InputError: the file cannot be read, names unknown keys or one key twice, or contradicts itself.
    """
    row_of = _row_of(keys)
    found: dict[tuple[int, int], bool] = {}
    unknown: list[str] = []
    for place, record in _records(path, PAIR):
        answer = _answer(record["same"], f"{path}, {place}")
        if answer is None:
            continue
        names = [_text(record[name]) for name in PAIR[:2]]
        if names[0] == names[1]:
            raise InputError(f"{path}, {place}: {shown(names[0])} is paired with itself")
        missing = [name for name in names if name not in row_of]
        unknown += missing
        if not missing:
            _add(found, (row_of[names[0]], row_of[names[1]]), answer, keys)
    _refuse_unknown(path, unknown)
    if not found:
        raise InputError(f"{path} has no judgement: write same or different into the column `same`")
    first, second = np.array(list(found), np.int64).T
    pairs = Pairs(first, second, np.array(list(found.values()), np.bool_))
    _refuse_contradiction(pairs, keys)
    return pairs


def read_labels(path: Path, keys: Sequence[str]) -> Labels:
    """Read labels of items with these keys. Raises InputError, as `read_pairs`."""
    row_of = _row_of(keys)
    found: dict[int, str] = {}
    unknown: list[str] = []
    for place, record in _records(path, LABEL):
        label = _text(record["label"])
        if not label:
            continue
        if label.lower() in _NO_LABEL:
            raise InputError(f"{path}, {place}: {shown(label)} is no label: leave it empty")
        name = _text(record["key"])
        if name not in row_of:
            unknown.append(name)
        elif found.setdefault(row_of[name], label) != label:
            raise InputError(
                f"{path}, {place}: {shown(name)} has two labels, {shown(found[row_of[name]])} and "
                f"{shown(label)}"
            )
    _refuse_unknown(path, unknown)
    if not found:
        raise InputError(f"{path} has no label: write them into the column `label`")
    return labelled(found)


def labels_of(payloads: Sequence[bytes], field: str) -> Labels:
    """Read the labels in the payloads of items. Raises InputError: there is none."""
    found = {}
    for row, payload in enumerate(payloads):
        document = orjson.loads(payload) if payload else None
        value = document.get(field) if isinstance(document, dict) else None
        if isinstance(value, str | int | float) and value != "":
            found[row] = str(value)
    if not found:
        raise InputError(
            f"no payload has a field {field} of a string or a number: judge pairs (--propose prints them) "
            "and name the file with --pairs, or name labels with --labels or --label"
        )
    return labelled(found)


def labelled(found: Mapping[int, str]) -> Labels:
    """Return labels by row as arrays."""
    names, labels = np.unique(list(found.values()), return_inverse=True)
    return Labels(np.fromiter(found, np.int64, len(found)), labels.astype(np.int64), names.tolist())


def _records(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with its place in the file. Raises InputError: it cannot be read, or lacks a column."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path} is no text in UTF-8: a file of judgements is CSV or JSON lines, with {', '.join(wanted)}"
        ) from None
    if not text.strip():
        raise InputError(f"{path} is empty: a file of judgements has the columns {', '.join(wanted)}")
    rows = _json_lines(path, text) if text.lstrip().startswith("{") else _table(path, text, wanted)
    for count, (place, record) in enumerate(rows):
        if count >= ROWS_MAX:
            raise InputError(f"{path} has more than {ROWS_MAX:,} rows")
        _need_names(path, place, record, wanted)
        yield place, record


def _need_names(path: Path, place: str, names: Container[str], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in names]:
        raise InputError(
            f"{path}, {place}: there is no {missing[0]}; a file of judgements has the columns "
            f"{', '.join(wanted)}"
        )


def _table(path: Path, text: str, wanted: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    head = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(text.lstrip()), delimiter=delimiter, restval="")
    try:
        _need_names(path, "line 1", [name.strip().lower() for name in reader.fieldnames or ()], wanted)
        for record in reader:
            named = {str(name).strip().lower(): value for name, value in record.items()}
            yield f"line {reader.line_num}", named
    except csv.Error as problem:
        raise InputError(f"{path}, line {reader.line_num}: broken CSV: {problem}") from None


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as problem:
            raise InputError(f"{path}, line {number} is not JSON: {problem}") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number} is no JSON object: {shown(record)}")
        yield f"line {number}", record


def _row_of(keys: Sequence[str]) -> dict[str, int]:
    return {key: row for row, key in enumerate(keys)}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _answer(value: Any, place: str) -> bool | None:
    """Return the judgement in a field; None: it is empty."""
    text = _text(value).lower()
    if text and text not in ANSWERS:
        raise InputError(f"{place}: same = {shown(value)} is neither same nor different")
    return ANSWERS.get(text)


def _add(
    found: dict[tuple[int, int], bool], pair: tuple[int, int], answer: bool, keys: Sequence[str]
) -> None:
    pair = min(pair), max(pair)
    if found.setdefault(pair, answer) != answer:
        names = " and ".join(shown(keys[row]) for row in pair)
        raise InputError(f"{names} are judged both same and different: keep one of them")


def _refuse_unknown(path: Path, unknown: Sequence[str]) -> None:
    if unknown:
        more = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        raise InputError(f"{path}: there is no item {shown(unknown[0])}{more} in the collection")


def _refuse_contradiction(pairs: Pairs, keys: Sequence[str]) -> None:
    """Raise InputError where items are the same by a chain of judgements, and different by another."""
    near: dict[int, list[int]] = {}
    rows = list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True))
    for one, other, same in rows:
        if same:
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    for one, other, same in rows:
        if not same and (chain := _chain(near, one, other)):
            told = " = ".join(shown(keys[row]) for row in chain)
            raise InputError(
                f"the judgements contradict each other: {told}, but {shown(keys[one])} and "
                f"{shown(keys[other])} are judged different"
            )


def _chain(near: Mapping[int, Sequence[int]], start: int, end: int) -> list[int]:
    """Return the shortest path from one item to another; [] where there is none."""
    came: dict[int, int] = {start: start}
    waiting = deque([start])
    while waiting and end not in came:
        here = waiting.popleft()
        for row in near.get(here, ()):
            if row not in came:
                came[row] = here
                waiting.append(row)
    if end not in came:
        return []
    way = [end]
    while way[-1] != start:
        way.append(came[way[-1]])
    return way[::-1]
