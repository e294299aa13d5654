"""`python -m tests.faults.simulate --seeds 1000`: stories of faults, each decided by one seed.

Each story is told twice: to an engine that nothing disturbs, and to one whose processes are killed, lose
power, stop, or meet a failing disk, at any file operation or at a named point, time and again. Compared is
what each life found in the store and left there. One line of JSON a seed goes to `--out`; seeds that are in
it already are not told again.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults import disk, record, zygote
from tests.faults.disk import Disk

MODULE = "tests.faults.simulate"


def main() -> int:
    options = record.parser(MODULE, __doc__, seeds=50).parse_args()
    start()
    seeds = range(options.first, options.first + options.seeds)
    return record.keep(MODULE, {"simulation": seeds}, options.out, {"simulation": simulate})


def start() -> None:
    """This process again, with the disk of `disk.c` preloaded and an environment that bears forks."""
    if "disk.so" not in os.environ.get("LD_PRELOAD", ""):
        library = disk.compile_into(disk.scratch())
        zygote.become(MODULE, {"LD_PRELOAD": str(library)})
    library = Path(os.environ.pop("LD_PRELOAD"))
    shutil.rmtree(library.parent)  # it is mapped: the file is not needed any more


def simulate(seed: int, folder: Path) -> dict[str, Any]:
    """Tells a story twice and compares, in an empty folder. Raises Wrong."""
    from tests.faults.judge import Wrong, compare, read
    from tests.faults.life import Life
    from tests.faults.story import Fault, draw_faults, tell
    from tests.faults.topic import Topic

    story = tell(seed)
    whole, broken, errors = folder / "whole", folder / "broken", folder / "errors"

    def live(store: Path, number: int, fault: Fault | None) -> bool:
        """Whether the fault struck."""
        topic = Topic(store.with_suffix(".topic"), seed, number, is_faulty=store is broken)
        status = zygote.wait(zygote.fork(Life(story, store, topic, Disk(), fault).live, errors))
        may_die = fault is not None and fault.how in disk.FATAL
        if status not in ((0, -9) if may_die else (0,)):
            raise Wrong(f"life {number} of {story}, {fault}, ended with {status}: {record.text_of(errors)}")
        return status != 0 or "refused" in read(store)[-1]

    live(whole, 0, None)
    undisturbed = read(whole)[-1]
    faults = draw_faults(story, undisturbed["ended"], undisturbed["points"])
    struck: Counter[str] = Counter()
    for number, fault in enumerate(faults, 1):
        if live(broken, number, fault):
            struck[f"{fault.how} at {fault.where}"] += 1
    live(broken, len(faults) + 1, None)
    compare(story, whole, broken)
    return {"story": str(story), "versions": len(story.batches), "struck": dict(struck)}


if __name__ == "__main__":
    sys.exit(main())
