"""Choose where numba caches compiled kernels, before it is loaded.

Numba caches next to the source or in the user's cache folder, and raises an exception where it can write to
neither: a read-only installation run by a user without a home. Then the cache is a folder of our own for
temporary files; without one every process compiles its kernels again.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_SETTING = "NUMBA_CACHE_DIR"
_SOURCE = Path(__file__).parents[1]
_told = False


def prepare() -> None:
    """Leave the choice to numba where it has one."""
    if os.environ.get(_SETTING) or _usable(_SOURCE) or _usable(_users_cache()):
        return
    folder = _own_folder()
    if folder is not None:
        os.environ[_SETTING] = str(folder)
    else:
        from numba.core.dispatcher import Dispatcher

        Dispatcher.enable_caching = lambda self: None  # type: ignore[method-assign]


def report() -> None:
    """Log, once in a process, that the cache is not where it belongs."""
    global _told
    if _told or _usable(_SOURCE) or _usable(_users_cache()):
        return
    _told = True
    here = os.environ.get(_SETTING)
    if here and here != str(_own_folder()):
        return  # the user has chosen it
    where = f"they are cached in {here} until the system clears it" if here else "every process compiles them"
    import logging

    logging.getLogger("shoal").warning(
        f"neither {_SOURCE} nor {_users_cache()} can be written, so compiled kernels have no lasting place: "
        f"{where}; set {_SETTING} to a folder that can be written"
    )


def _users_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "numba"


def _usable(folder: Path) -> bool:
    """Return whether the folder can be written, or made."""
    try:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except (OSError, StopIteration):
        return False


def _own_folder() -> Path | None:
    """Return a folder that only this user can write: numba unpickles what it finds there. None: no room."""
    import tempfile

    try:
        folder = Path(tempfile.gettempdir()) / f"shoal-kernels-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    safe = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if safe and os.access(folder, os.W_OK | os.X_OK) else None
