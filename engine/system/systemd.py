"""Readiness and watchdog notifications to systemd (the sd_notify protocol); without systemd, nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

TIMEOUT_S = 0.1  # a receiver that does not read must not block the daemon


class Notifier:
    """Notifications of a unit of `Type=notify`; watchdog beats at most every third of its time-out."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        found = os.environ if environment is None else environment
        self._address = found.get("NOTIFY_SOCKET", "")
        own = found.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every_s = int(found.get("WATCHDOG_USEC", "0")) / 3e6 if own else 0.0
        self._beat_at = 0.0

    def tell(self, *assignments: str) -> None:
        """Send assignments such as `READY=1`."""
        if not self._address:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.settimeout(TIMEOUT_S)
            out.sendto("\n".join(assignments).encode(), name)

    def beat(self) -> None:
        """Send the watchdog's keep-alive, unless one was sent recently."""
        now = time.monotonic()
        if self._every_s and now - self._beat_at >= self._every_s:
            self._beat_at = now
            self.tell("WATCHDOG=1")
