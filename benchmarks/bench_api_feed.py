"""Sends records to an API as fast as they are taken, and prints how many were: `bench_api`'s feeder.

Arguments: the port, an .npy of vectors, which feeder this is, of how many. Keys begin where the vectors end,
so that every record is new.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import os
import sys
from itertools import count

import numpy as np
import orjson

PIECE = 512
NICENESS = 10  # it stands for other machines


def main() -> None:
    os.nice(NICENESS)
    port, file, at, of = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    rows = np.load(file)
    rng = np.random.default_rng(at)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    taken = 0
    for piece in count():
        part = rows[rng.integers(0, len(rows), PIECE)] + rng.normal(scale=0.01, size=(PIECE, rows.shape[1]))
        first = (piece * of + at) * PIECE
        body = b"".join(
            orjson.dumps({"key": f"new:{first + n}", "embedding": row.tolist()}) + b"\n"
            for n, row in enumerate(part)
        )
        connection.request("POST", "/v1/items", body, {"content-type": "application/x-ndjson"})
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:  # it is stopping
            return
        taken += orjson.loads(answer.read())["written"]
        print(taken, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(OSError, http.client.HTTPException):  # it is gone
        main()
