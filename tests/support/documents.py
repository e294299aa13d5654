"""What the README and the guides say, in parts that tests can try: blocks, inline code, links, headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from engine.api.guide import anchor
from tests.conftest import ROOT

README = ROOT / "README.md"
GUIDES = sorted((ROOT / "engine/guide").glob("*.md"))
SHELL = ("sh", "console")
CONTINUED = "\\\n"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: "```sh run" has the language sh and the mark run."""

    file: Path
    line: int
    language: str
    marks: frozenset[str]
    text: str

    @property
    def place(self) -> str:
        return f"{self.file.name}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a shell block, one a line, without comments."""
        lines = (re.sub(r"(^|\s)#\s.*$", "", line) for line in self.text.replace(CONTINUED, " ").splitlines())
        return [line.strip() for line in lines if line.strip()]


@dataclass(frozen=True, slots=True)
class Document:
    """A Markdown file, parsed."""

    file: Path
    text: str
    tokens: list[Token]

    @classmethod
    def read(cls, file: Path) -> Document:
        text = file.read_text()
        return cls(file, text, MarkdownIt("commonmark").enable("table").parse(text))

    def blocks(self, *languages: str) -> list[Block]:
        """The fenced blocks of these languages, in order."""
        found = []
        for token in self.tokens:
            if token.type == "fence":
                language, *marks = token.info.split() or [""]
                assert token.map
                found.append(Block(self.file, token.map[0] + 1, language, frozenset(marks), token.content))
        return [block for block in found if block.language in languages]

    def inline(self) -> list[str]:
        """All code within sentences and tables."""
        return [token.content for token in self._spans() if token.type == "code_inline"]

    def links(self) -> list[str]:
        """The targets of links."""
        spans = [token for token in self._spans() if token.type == "link_open"]
        return [str(token.attrs["href"]) for token in spans]

    def pictures(self) -> list[Path]:
        """The files of <img> and <source>."""
        return [self.file.parent / name for name in re.findall(r'(?:src|srcset)="([^":]+)"', self.text)]

    def anchors(self) -> set[str]:
        """What headings can be linked as."""
        at = [i for i, token in enumerate(self.tokens) if token.type == "heading_open"]
        return {anchor(self.tokens[i + 1].content) for i in at}

    def commands(self) -> Iterator[list[str]]:
        """Every `shoal` command, as words: in shell blocks and in sentences."""
        lines = [line for block in self.blocks(*SHELL) for line in block.commands()]
        for line in lines + self.inline():
            words = shlex.split(line) if line.startswith(("shoal ", "/")) else []
            if words and words[0].rpartition("/")[2] == "shoal":
                yield words[1:]

    def _spans(self) -> list[Token]:
        return [child for token in self.tokens for child in token.children or []]


DOCUMENTS = [Document.read(file) for file in (README, *GUIDES)]
