"""Ports for servers that are told theirs before they listen."""

from __future__ import annotations

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, TRIES = 15_000, 200


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback on which nothing listens.

    They are below those that the system gives to connections and to servers without a port. Tests beside this
    one open hundreds of these in the seconds until the server listens; one of them would take its port.
    """
    highest = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32_768
    drawn = random.SystemRandom().sample(range(LOWEST, highest), TRIES) if highest - LOWEST > TRIES else []
    sockets: list[socket.socket] = []
    for port in [*drawn, *[0] * count]:
        if len(sockets) == count:
            break
        try:
            sockets.append(socket.create_server(("127.0.0.1", port)))
        except OSError:  # in use
            continue
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
