"""`python -m tests.faults.kills --step-store 800 --daemon 200`: SIGKILL at random moments.

step-store: a process takes batches into a store and publishes its event log. It is killed within a batch that
is drawn uniformly from all, then another goes on to the end. All that is stored and published equals the
undisturbed run's, to the bit.

daemon: `shoal serve` with a real Kafka broker, under load. Killed are its writer, publisher, API, supervisor,
or all at once, ten times a seed. In the end the store holds the last of each key, clustered as a rebuild at
its epoch, and the outgoing topics each event of its log exactly once. Nothing lost, nothing twice.

One line of JSON a seed goes to `--out`; seeds that are in it already are not done again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults import disk, record, zygote

MODULE = "tests.faults.kills"
KILLS_A_SEED = 10  # of the daemon
LONGEST_S = 10.0  # to the next kill: a start takes some six seconds


def main() -> int:
    parser = record.parser(MODULE, __doc__)
    parser.add_argument("--step-store", type=int, default=0, metavar="KILLS", help="one a seed")
    parser.add_argument("--daemon", type=int, default=0, metavar="KILLS", help=f"{KILLS_A_SEED} a seed")
    parser.add_argument("--python", default=sys.executable, help="what the daemon is started with")
    parser.add_argument(
        "--within",
        type=float,
        default=LONGEST_S,
        metavar="S",
        help="the longest to the next kill of a daemon",
    )
    options = parser.parse_args()
    zygote.become(MODULE)
    sizes = [min(KILLS_A_SEED, options.daemon - at) for at in range(0, options.daemon, KILLS_A_SEED)]
    seeds = {
        "step-store": range(options.first, options.first + options.step_store),
        "daemon": range(options.first, options.first + len(sizes)),
    }
    with _Broker() as broker:

        def kill_daemon(seed: int, folder: Path) -> dict[str, Any]:
            from tests.faults import serving

            daemon = serving.Daemon(folder, broker.bootstrap, options.python)
            return serving.kill_daemon(daemon, seed, sizes[seed - options.first], options.within)

        do = {"step-store": kill_step_and_store, "daemon": kill_daemon}
        return record.keep(MODULE, seeds, options.out, do)


class _Broker(contextlib.ExitStack):
    """Started when it is asked for."""

    @functools.cached_property
    def bootstrap(self) -> str:
        from tests.broker import open_broker

        folder = disk.scratch()
        self.callback(shutil.rmtree, folder, ignore_errors=True)
        broker = open_broker(folder)
        self.callback(broker.stop)
        return broker.bootstrap


def kill_step_and_store(seed: int, folder: Path) -> dict[str, Any]:
    """One kill. Raises Wrong."""
    from tests.faults.judge import Wrong, compare
    from tests.faults.life import Life
    from tests.faults.story import tell
    from tests.faults.topic import Topic

    story = tell(seed, scale=(60, 250), most_batches=20)
    whole, broken, errors = folder / "whole", folder / "broken", folder / "errors"

    def begin(store: Path, number: int) -> int:
        topic = Topic(store.with_suffix(".topic"), seed, number, is_faulty=store is broken)
        return zygote.fork(Life(story, store, topic).live, errors)

    def end(child: int) -> int:
        status = zygote.wait(child)
        if status not in (0, -signal.SIGKILL):
            raise Wrong(f"{story} ended with {status}: {record.text_of(errors)}")
        return status

    begun = time.perf_counter()
    end(begin(whole, 0))
    batch_s = (time.perf_counter() - begun) / len(story.batches)
    moments = random.Random(seed)
    lives, status = 0, 0
    while not status:  # until the kill is in time
        lives += 1
        child = begin(broken, lives)
        batches, share = divmod(moments.uniform(0, len(story.batches)) / lives, 1)
        while _applied(broken) < batches and not _has_ended(child):
            time.sleep(batch_s / 50)
        time.sleep(share * batch_s)
        os.kill(child, signal.SIGKILL)
        status = end(child)
        if not status:
            for path in folder.glob("broken*"):
                _remove(path)
    found = _applied(broken)
    if end(begin(broken, lives + 1)):
        raise Wrong("the last life was killed by somebody else")
    compare(story, whole, broken)
    return {"story": str(story), "versions": len(story.batches), "killed_at": found}


def _applied(store: Path) -> int:
    """How many batches are durable, by the journal that a life writes."""
    journal = store.with_suffix(".journal")
    return journal.read_bytes().count(b'"applied"') if journal.exists() else 0


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _remove(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
    else:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
