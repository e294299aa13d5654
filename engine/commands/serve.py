"""`serve`, `serve --check`, `init`: the daemon, what it would do, and settings to start from."""

from __future__ import annotations

from pathlib import Path

from engine import daemon, logs
from engine.config import Settings
from engine.errors import InputError

TEMPLATE = Path(__file__).parent / "shoal.toml"


def serve(settings: Settings) -> None:
    """Until SIGTERM or Ctrl-C."""
    logs.configure("daemon")
    daemon.serve(settings)


def init(path: Path) -> None:
    """Write the commented settings where there is no file yet."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError(f"{path} exists already: name another file, or delete it.") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror}.") from None
    print(f"{path} is written: look it over, then `shoal serve -c {path} --check`.")


def check(settings: Settings) -> None:
    raise NotImplementedError
