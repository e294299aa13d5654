"""An ETag stands for all that an answer depends on."""

from __future__ import annotations

from pathlib import Path

from engine.api.context import Context
from engine.config import load


def test_an_etag_ends_with_the_settings_that_its_answer_was_made_with(tmp_path: Path) -> None:
    """A daemon that comes back with other themes has none of the answers that a client kept."""

    def stamp(text: str) -> int:
        (tmp_path / "shoal.toml").write_text(text)
        context = Context(load(tmp_path / "shoal.toml", {"store.path": str(tmp_path / "store")}))
        context.close()
        return context.stamp

    plain = stamp("")
    assert plain == stamp("[model]\ncoarser = [0.35, 0.2]\n")
    assert len({plain, stamp("[model]\ncoarser = [0.3]\n"), stamp("[api]\npage_max = 10\n")}) == 3
