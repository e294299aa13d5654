"""How soon the page shows its first content in Chromium, and what an answer costs the API's processor.

The store is filled without clustering: nothing is written meanwhile.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

from benchmarks.report import arguments, finish, print_table
from engine.api.app import make_app
from engine.api.context import Context
from engine.api.middleware.authentication import Keys
from engine.config import Settings
from engine.config_transfer import freeze
from tests.support.asgi import Asked, scope_of
from tests.support.large_store import fill
from tests.support.live_api import settings_of

FIRST = {"figures": ".numbers .items dd", "map": ".disc", "feed": ".story", "cards": ".cluster-card"}
WHEN = """selector => new Promise((done, failed) => {
  setTimeout(() => failed(new Error(`${selector} did not come`)), 60_000);
  const look = () => {
    const node = document.querySelector(selector);
    if (node && node.textContent !== '\\u2013') done(performance.now());
    else requestAnimationFrame(look);
  };
  look();
})"""
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


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(Path(folder) / "store")
        fill(settings.store.path, chosen.items)
        figures = {"items": chosen.items, "answer_cpu_ms": answer_cost(settings) * 1000}
        with serving(settings) as url:
            while not httpx.get(f"{url}/v1/clusters?order=growth").is_success:
                time.sleep(0.1)  # growth is still being counted
            figures["first_ms"] = first_content(url, chosen.runs)
    print_table(["shown first", "ms, best run"], [[name, ms] for name, ms in figures["first_ms"].items()])
    print(f"\nGET items/{{key}}: {figures['answer_cpu_ms']:.2f} ms of the processor")
    finish(figures, chosen.json)


def first_content(url: str, runs: int) -> dict[str, float]:
    """Milliseconds from the navigation on, the best of some runs in a fresh browser context."""
    best: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(runs):
            with browser.new_context(reduced_motion="reduce") as context:
                page = context.new_page()
                page.goto(url, wait_until="commit")
                for name, selector in FIRST.items():
                    shown = float(page.evaluate(WHEN, selector))
                    best[name] = min(shown, best.get(name, shown))
        browser.close()
    return best


def answer_cost(settings: Settings, rounds: int = 5, count: int = 500) -> float:
    """Seconds of the processor for an item's answer, from the first middleware to the last byte."""
    context = Context(settings)
    app = make_app(context, Keys([]))

    async def ask() -> float:
        start = time.process_time()
        for number in range(count):
            asked = Asked()
            scope = scope_of(f"/v1/items/item:{number + 1}", [(b"host", b"127.0.0.1")])
            await app(scope, asked.receive, asked.send)
            assert asked.status == 200
        return (time.process_time() - start) / count

    async def measure() -> float:
        return min([await ask() for _ in range(rounds)])

    try:
        return asyncio.run(measure())
    finally:
        context.close()


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The API in a process of its own."""
    command = [sys.executable, "-c", API]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin:
            stdin.write(freeze(settings))
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
