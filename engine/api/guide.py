"""The guides as pages: Markdown of `engine/guide`, in the look of the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

GUIDES = Path(__file__).resolve().parents[1] / "guide"
FRAME = Path(__file__).resolve().parent / "static" / "guide" / "frame.html"
INDEX = "index"
HEADERS = {
    "cache-control": "no-cache",
    # Browsers enforce it in addition to the API's own policy: a guide has no inline style, data or request.
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; font-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


def install(app: FastAPI) -> None:
    """Add `/guide`, `/guide/<name>` and the guides' pictures."""

    @app.api_route("/guide", methods=["GET", "HEAD"], include_in_schema=False)
    def index() -> Response:
        return HTMLResponse(page(INDEX), headers=HEADERS)

    @app.api_route("/guide/", methods=["GET", "HEAD"], include_in_schema=False)
    def slash() -> Response:
        return RedirectResponse("../guide")

    @app.api_route("/guide/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    def guide(name: str) -> Response:
        if name in pictures():
            return FileResponse(GUIDES / name, headers=HEADERS)
        if name not in names():
            raise HTTPException(404)
        return HTMLResponse(page(name), headers=HEADERS)


@lru_cache(maxsize=1)
def names() -> Sequence[str]:
    """Return the guides in the order of the index; those it does not name come last."""
    listed = re.findall(r"\]\((\w+)\.md\)", _read(INDEX))
    others = sorted({file.stem for file in GUIDES.glob("*.md")} - {INDEX, *listed})
    return [*listed, *others]


@lru_cache(maxsize=1)
def pictures() -> frozenset[str]:
    """Return the pictures that guides show."""
    return frozenset(file.name for file in GUIDES.glob("*.png"))


@lru_cache(maxsize=64)
def page(name: str) -> str:
    """Return a guide as HTML, with relative links, so that it also works behind a path prefix."""
    up, beside = ("", "guide/") if name == INDEX else ("../", "")
    links = (
        f'      <a href="{beside}{other}"{_current(other == name)}>{escape(_title(other))}</a>'
        for other in names()
    )
    return Template(FRAME.read_text(encoding="utf-8")).substitute(
        title=escape(_title(name)),
        up=up,
        index_current=_current(name == INDEX),
        pages="\n".join(links),
        body=render(_read(name), beside),
    )


def render(text: str, beside: str = "") -> str:
    """Markdown as HTML: headings get ids, links to `name.md` become links to the page `name`.

    `beside`: the path from the page to the guides. HTML in the text is shown, not passed on.
    """
    markdown = _markdown()
    tokens = markdown.parse(text)
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor(tokens[at + 1].content))
        for child in token.children or ():
            if child.type == "link_open":
                child.attrSet("href", re.sub(r"^(\w+)\.md", rf"{beside}\1", str(child.attrs["href"])))
    return str(markdown.renderer.render(tokens, markdown.options, {}))


def anchor(heading: str) -> str:
    """Return the id of a heading as code hosts make it: lower case, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt  # when the first guide is read: the API starts without it

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("fence", _block)
    markdown.add_render_rule("table_open", _open_table)
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return markdown


def _block(renderer: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
    """Render a block of code; like a table it scrolls within its own box, also by keyboard."""
    return f'<pre tabindex="0"><code>{escape(tokens[at].content)}</code></pre>\n'


def _open_table(renderer: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
    return '<div class="table" tabindex="0" role="region" aria-label="Table"><table>\n'


def _read(name: str) -> str:
    return (GUIDES / f"{name}.md").read_text(encoding="utf-8")


def _title(name: str) -> str:
    return _read(name).partition("\n")[0].removeprefix("# ")


def _current(is_current: bool) -> str:
    return ' aria-current="page"' if is_current else ""
