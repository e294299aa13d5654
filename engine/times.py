"""The time of an event: every usual form of it, as milliseconds since 1970."""

from __future__ import annotations

import math
import re
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np

from engine.errors import Unusable, shown
from engine.types import Bool, Int64

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
EARLIEST_MS = 631_152_000_000  # 1990: earlier times are more often a mistake of unit than a date
LATEST_AHEAD_MS = 86_400_000  # a day: clocks of producers differ

NO_NUMBERS = (bool, np.timedelta64)  # though they are subclasses of numbers
_NO_ARRAY = np.empty((0, 0))
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?::(\d\d)(?:[.,](\d+))?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?)?", re.I | re.A
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.A)


def read_time(value: Any) -> int | None:
    """Return milliseconds since 1970, None where there is no time (None, NaN, NaT). Raises Unusable.

    Numbers are seconds, milliseconds, microseconds or nanoseconds, told apart by their magnitude: up to
    1e11, 1e14, 1e17 and beyond. Strings are ISO 8601; a string or date without a zone is UTC.
    """
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, NO_NUMBERS):
        return _scaled(value)
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else _in_range(int(value.astype("datetime64[ms]").astype(np.int64)))
    if isinstance(value, str):
        return _of_text(value.strip())
    if isinstance(value, date):
        if value != value:  # pandas.NaT
            return None
        if not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        moment: datetime = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return (moment - EPOCH) // timedelta(milliseconds=1)
    if value is None:
        return None
    raise Unusable(f"the time must be a number or an ISO 8601 string, not {shown(value)}")


def _scaled(number: Any) -> int | None:
    value: float = number.item() if isinstance(number, np.generic) else number
    if value != value:
        return None
    size = abs(value)
    if not size < 2**63:
        raise Unusable(f"the time {shown(value)} is out of range")
    if size < 10**11:
        return round(value * 1000)
    return math.floor(value) // (1 if size < 10**14 else 1000 if size < 10**17 else 1_000_000)


def _of_text(text: str) -> int | None:
    if not text:
        return None
    if _NUMBER.fullmatch(text):
        return _scaled(int(text) if text.lstrip("+-").isdigit() else float(text))
    if found := _ISO.fullmatch(text):
        day, clock, seconds, fraction, zone = found.groups()
        zone = "+00:00" if not zone or zone in "Zz" else zone
        zone = zone if len(zone) > 3 else f"{zone}:00"
        zone = zone if ":" in zone else f"{zone[:3]}:{zone[3:]}"
        micro = ((fraction or "") + "000000")[:6]
        try:
            moment = datetime.fromisoformat(f"{day}T{clock or '00:00'}:{seconds or '00'}.{micro}{zone}")
            return (moment - EPOCH) // timedelta(milliseconds=1)
        except (ValueError, OverflowError):
            pass
    raise Unusable(f"the time must be a number or an ISO 8601 string, not {shown(text)}")


def _in_range(time_ms: int) -> int:
    if not abs(time_ms) < 2**53:
        raise Unusable(f"the time {time_ms} ms is out of range")
    return time_ms


def read_times(column: Any) -> tuple[Int64, Bool, dict[int, str]]:
    """Read a column of times: ms (n,), whether there is one (n,), and reasons of bad ones by row."""
    array = column if isinstance(column, np.ndarray) else _NO_ARRAY
    count = len(column)
    told, out = np.ones(count, np.bool_), np.zeros(count, np.int64)
    if array.ndim == 1 and array.dtype.kind == "M":
        told = ~np.isnat(array)
        out[told] = array[told].astype("datetime64[ms]").astype(np.int64)
        wrong = np.flatnonzero(np.abs(out) >= 2**53)
    elif array.ndim == 1 and array.dtype.kind in "iuf":
        told = ~np.isnan(array) if array.dtype.kind == "f" else told
        sizes = np.abs(np.where(told, array, 0).astype(np.float64))
        wrong = np.flatnonzero(sizes >= 2.0**63)
        unit = np.digitize(sizes, [1e11, 1e14, 1e17])  # 0: seconds
        for place in np.unique(unit[told]):
            rows = np.flatnonzero(told & (unit == place) & (sizes < 2.0**63))
            values = array[rows].astype(np.float64) if array.dtype.kind == "f" else array[rows]
            if place == 0:
                out[rows] = np.rint(values * 1000.0) if array.dtype.kind == "f" else values.astype(int) * 1000
            else:
                out[rows] = np.floor(values).astype(np.int64) // (1, 1000, 1_000_000)[place - 1]
    else:
        wrong = np.arange(count)  # one by one
    reasons: dict[int, str] = {}
    for row in wrong.tolist():
        try:
            value = column[row]
            time_ms = read_time(value.item() if isinstance(value, np.bool_) else value)
            told[row], out[row] = time_ms is not None, time_ms or 0
        except Unusable as problem:
            reasons[row] = str(problem)
    return out, told, reasons


def is_doubtful(time_ms: Any, now_ms: int) -> Any:
    """Return whether a time (or each of an array) is before 1990 or more than a day ahead."""
    return (time_ms < EARLIEST_MS) | (time_ms > now_ms + LATEST_AHEAD_MS)


def shown_time(time_ms: int) -> str:
    """Return a time in ISO 8601 if the calendar reaches that far, else in ms."""
    try:
        return (EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="seconds").replace("+00:00", "Z")
    except OverflowError:
        return f"{time_ms} ms"
