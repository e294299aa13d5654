"""Make the README's pictures: the page while the demo streams, in light and dark.

    python -m benchmarks.picture [--items 1200] [--folder engine/guide]

Starts `shoal demo`, opens its page in the Chromium that is installed, waits until so many digits are in,
and writes page-light.png and page-dark.png. Needs `pip install -e .[test,bench]`.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

Scheme = Literal["light", "dark"]
FOLDER = Path(__file__).parents[1] / "engine" / "guide"
SIZE: ViewportSize = {"width": 1180, "height": 880}
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
BYTES_MAX = 200_000  # of each picture
START_S = 120.0
COLORS = 256  # a palette: half the bytes, and nobody sees it
SETTLE_MS = 1_500  # for the page's transitions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1200, help="digits that the picture waits for")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go")
    chosen = parser.parse_args()
    with _demo() as url, sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=_chromium(), args=root)
        page = browser.new_page(viewport=SIZE, reduced_motion="reduce")
        page.goto(url)
        _wait(page, chosen.items)
        for scheme in SCHEMES:
            _take(page, scheme, chosen.folder / f"page-{scheme}.png")
        browser.close()


def _wait(page: Page, items: int) -> None:
    """Return when the demo has taken so many digits."""
    deadline = time.monotonic() + START_S
    while page.evaluate("fetch('v1/summary').then(answer => answer.json())").get("items", 0) < items:
        if time.monotonic() > deadline:
            sys.exit(f"The demo did not take {items:,} digits within {START_S:.0f} s.")
        page.wait_for_timeout(200)


def _take(page: Page, scheme: Scheme, file: Path) -> None:
    """Write one picture. Exits where it is too large for a README."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_timeout(SETTLE_MS)
    found = Image.open(io.BytesIO(page.screenshot()))
    found.convert("RGB").quantize(COLORS).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size:,} bytes")
    if file.stat().st_size > BYTES_MAX:
        sys.exit(f"A README's picture should have at most {BYTES_MAX:,} bytes.")


@contextmanager
def _demo() -> Iterator[str]:
    """A demo on a free port; its page's address."""
    environment = {**os.environ, "SHOAL_API__PORT": "0", "COLUMNS": "200"}
    with subprocess.Popen(
        [sys.executable, "-m", "engine", "demo"], stdout=subprocess.PIPE, text=True, env=environment
    ) as demo:
        try:
            yield _address(demo)
        finally:
            demo.terminate()


def _address(demo: subprocess.Popen[str]) -> str:
    assert demo.stdout
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and (line := demo.stdout.readline()):
        if found := re.search(r"http://\S+", line):
            return found.group()
    sys.exit("The demo did not say where its page is.")


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    sys.exit("There is no Chromium: install it (on Debian: apt-get install chromium).")


if __name__ == "__main__":
    main()
