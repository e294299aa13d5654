"""Shoal: live clustering of embedding streams."""

from __future__ import annotations

from engine.system import importpath  # noqa: F401  (first of all: keeps the current folder out of imports)

# isort: split
from typing import TYPE_CHECKING, Any

from engine.system import determinism, kernel_cache  # noqa: F401  (both act before anything computes)

if TYPE_CHECKING:
    from engine.collection.collection import Engine as Engine
    from engine.collection.estimator import HiLander as HiLander

kernel_cache.prepare()
__version__ = "0.1.0"
__all__ = ["Engine", "HiLander", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the engine, and with it torch, only when it is asked for."""
    if name == "Engine":
        from engine.collection.collection import Engine

        return Engine
    if name == "HiLander":
        from engine.collection.estimator import HiLander

        return HiLander
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
