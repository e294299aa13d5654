"""`serve`, `serve --check`, `init`: the daemon, what it would do, and settings to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.config import Settings
from engine.daemon import key_file, supervisor
from engine.errors import InputError, counted
from engine.system import logs

TEMPLATE = Path(__file__).parent / "shoal.toml"

PlanSource = Callable[[Settings, Callable[[str], "bytes | None"]], str]


def serve(settings: Settings) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    key_file.read(settings.api)  # before any process is started: it takes no time to find it wrong
    logs.configure("daemon")
    supervisor.serve(settings)


def check(settings: Settings, plan_source: PlanSource) -> None:
    """Say line by line what `serve` would do. Raises what it would end with."""
    positions: dict[str, bytes] = {}
    answering = _plan_api(settings)  # first: it takes no time to find it wrong
    print(_plan_store(settings, positions))
    print(plan_source(settings, positions.get))
    print(answering)


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


def _plan_store(settings: Settings, positions: dict[str, bytes]) -> str:
    from engine.collection.build import load_adapter, load_model, store_config
    from engine.storage.environment import refuse_remains
    from engine.storage.reader import View
    from engine.storage.store import compare

    folder, name = settings.store.path, settings.collection.name
    wanted = store_config(settings, load_model(settings), load_adapter(settings))
    supervisor.need_folder(folder)
    if not (folder / "data.mdb").exists():
        refuse_remains(folder)
        return f"It would make a store for the collection {name} in {folder}."
    with View.open(folder, settings.limits.map_size_bytes) as view:
        compare(folder, view.config, {**wanted, "format": view.config["format"]})
        positions.update(view.positions())
        found = view.summary()
    return (
        f"It would open the store in {folder}: collection {name}, {counted(found['items'], 'item')} in "
        f"{counted(found['clusters'], 'cluster')}, version {found['version']}."
    )


def _plan_api(settings: Settings) -> str:
    keys = key_file.read(settings.api)
    with supervisor.listen(settings.api) as listening:
        url = supervisor.url_of(listening)
    return f"It would answer, and serve the page, at {url}{' to those who show its key' if keys else ''}."
