"""A base class for what is closed when a `with` block ends."""

from __future__ import annotations

from typing_extensions import Self


class Closing:
    """A context manager that is itself its value; `close` ends it, however the block ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything; a second call does nothing."""
        raise NotImplementedError
