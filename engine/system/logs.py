"""Structured logs on standard error: JSON lines, or plain text on a terminal.

An event is a few constant words; variables go into fields: `log.info("batch", version=7, records=256)`.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import structlog


def configure(process: str, level: int = logging.INFO) -> None:
    """Configure logging of this process, which every event names; libraries log from warnings on."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda logger, method, event: {"process": process, **event},
    ]
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if sys.stderr.isatty():
        last.append(structlog.dev.ConsoleRenderer())
    else:
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    logging.getLogger("shoal").setLevel(level)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def get(**fields: Any) -> Any:
    """Return a logger whose events have these fields."""
    return structlog.stdlib.get_logger("shoal").bind(**fields)
