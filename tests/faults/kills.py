"""`python -m tests.faults.kills --step-store 800`: SIGKILL at random moments; nothing lost, nothing twice.

step-store: a process takes batches into a store and publishes its event log. It is killed at a moment drawn
uniformly from the time that an undisturbed one took, then another goes on to the end. All that is stored and
published equals the undisturbed run's, to the bit.

One line of JSON a seed, and a kill a seed, goes to `--out`; seeds that are in it already are not done again.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults import record, zygote

MODULE = "tests.faults.kills"


def main() -> int:
    parser = record.parser(MODULE, __doc__)
    parser.add_argument("--step-store", type=int, default=0, metavar="KILLS")
    options = parser.parse_args()
    zygote.become(MODULE)
    seeds = {"step-store": range(options.first, options.first + options.step_store)}
    return record.keep(MODULE, seeds, options.out, {"step-store": kill_step_and_store})


def kill_step_and_store(seed: int, folder: Path) -> dict[str, Any]:
    """One kill. Raises Wrong."""
    from tests.faults.judge import Wrong, compare, read
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
    seconds = time.perf_counter() - begun
    moments = random.Random(seed)
    lives, status = 0, 0
    while not status:  # until the kill is in time
        lives += 1
        child = begin(broken, lives)
        time.sleep(moments.uniform(0, seconds) / lives)
        os.kill(child, signal.SIGKILL)
        status = end(child)
        if not status:
            for path in folder.glob("broken*"):
                _remove(path)
    found = [entry for entry in read(broken) if "applied" in entry]
    if end(begin(broken, lives + 1)):
        raise Wrong("the last life was killed by somebody else")
    compare(story, whole, broken)
    return {"story": str(story), "versions": len(story.batches), "killed_at": len(found)}


def _remove(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
    else:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
