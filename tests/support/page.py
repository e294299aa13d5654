"""The page as tests see it: a tab that remembers complaints, records of all kinds, addresses of views."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from playwright.sync_api import BrowserContext, Page, expect

from engine.config import Settings
from engine.config_transfer import freeze
from tests.conftest import ROOT, environment
from tests.support import warm_python
from tests.support.live_api import Api

expect.set_options(timeout=90_000)  # a busy machine is slow
SEED = 23
DIM = 8
AXE = (ROOT / "tests/vendor/axe/axe.min.js").read_text()
VIEWS = {
    "live": "#/",
    "clusters": "#/clusters",
    "growing": "#/clusters/by/growth",
    "newest": "#/clusters/by/newest",
    "finer groups": "#/clusters/at/0",
    "themes": "#/clusters/at/+1",
    "theme": "#/clusters/at/+2/of/{cluster}",
    "cluster": "#/clusters/{cluster}",
    "ended": "#/clusters/{ended}",
    "item": "#/items/{key}",
    "map": "#/map",
    "changes": "#/changes",
    "births": "#/changes/of/emerge",
    "no such item": "#/items/nobody",
    "no such view": "#/nowhere",
}
STILL = {"reduced_motion": "reduce"}
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
SCRIPT = "javascript:window.hacked=1"
ODD_KEYS = ["a/b", "%2F", "Gr\u00fc\u00dfe \u2603", "q?a=b#c", HOSTILE]


FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def picture(shade: int) -> str:
    """An 8 x 8 PNG as a data URL."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes((shade + 16 * x) % 256 for x in range(8)) for _ in range(8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(body).decode()


def payload(number: int) -> Any:
    """Of all the kinds there are, hostile ones too."""
    return [
        {"title": f"Picture {number}", "image": picture(number), "link": "https://example.com/a?b=c"},
        {"title": f"Article {number}", "text": "Words, words, words. " * 20},
        {"title": HOSTILE, "text": HOSTILE, "image": SCRIPT, "link": SCRIPT},
        {"title": "", "image": "data:image/svg+xml,<svg onload='hacked=1'/>", "url": "data:text/html,x"},
        "only text",
        ["a", "list"],
        None,
    ][number % 7]  # fmt: skip


def records(seed: int, count: int, prefix: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(SEED).normal(size=(7, DIM))
    vectors = centres[rng.integers(0, 7, count)] + 0.15 * rng.normal(size=(count, DIM))
    return [
        {"key": f"{prefix}{row}", "embedding": vector.tolist(), "payload": payload(row)}
        for row, vector in enumerate(vectors)
    ]


def post(served: Api, rows: list[dict[str, Any]]) -> None:
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    kind = {"content-type": "application/x-ndjson"}
    answer = served.http.post("/v1/items", content=body, headers=kind)
    assert answer.status_code == 200, answer.text
    assert answer.json()["refused"] == 0, answer.text


class Tab:
    """A page of a browser that remembers what it complained about and whom it asked."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.base, self.page = base, context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str) -> Page:
        self.page.goto(f"{self.base}/{address}")
        self.settle()
        return self.page

    def settle(self) -> None:
        """Until nothing is being waited for; what lies below the window is not asked for yet."""
        expect(self.page.locator("h1")).not_to_have_count(0)
        expect(self.page.locator("main .skeleton:not(.tile)")).to_have_count(0)

    def draw(self) -> None:
        """Until its pictures have come, or not, and what scripts do at once is done and drawn."""
        self.page.wait_for_function("[...document.images].every(image => image.complete)")
        self.page.evaluate(FRAMES)

    def _hear(self, message: Any) -> None:
        if message.type not in ("error", "warning"):
            return
        if "404" in message.text and "/nobody" in message.location["url"]:
            return  # Chromium tells of every 404; this one is asked for
        self.complaints.append(f"{message.text} {message.location['url']}")


API = """
import sys
from engine import config_transfer
from engine.api import server
from engine.daemon import supervisor
settings = config_transfer.thaw(sys.stdin.read())
with supervisor.listen(settings.api) as listening:
    print(supervisor.url_of(listening), flush=True)
    server.serve(settings, listening)
"""


@contextmanager
def elsewhere(settings: Settings) -> Iterator[str]:
    """The address of another API on the store, in a process of its own: LMDB is opened once in a process."""
    with subprocess.Popen(
        [warm_python.executable(), "-c", API],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin:
            stdin.write(freeze(settings))
        url = process.stdout.readline().strip()
        try:
            yield url
        finally:
            process.terminate()
            process.wait(120)
