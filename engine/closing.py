"""A base class for what is closed when a `with` block ends."""

from __future__ import annotations

from typing_extensions import Self


class Closing:
    """Mixin: `with` returns the object and calls `close` on exit."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        raise NotImplementedError
