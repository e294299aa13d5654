"""A command line that starts warm: commands are forked from a process that has imported what they need.

That process computes nothing: OpenMP does not survive a fork of one that has. What `python -m engine`
does before it is warm (imports, the path) is tested with processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PRELOADED = (
    "torch",
    "pyarrow.parquet",
    "sklearn.datasets",
    "engine.cli.digits",
    "engine.cli.ingest",
    "engine.cli.main",
    "engine.cli.operate",
    "engine.cli.show",
    "engine.collection.collection",
    "engine.training.evaluate",
)


class WarmCli:
    """Starts commands, one at a time. The caller's Python and environment decide what is imported."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, arguments: list[str], cwd: Path, env: Mapping[str, str], scratch: Path
    ) -> subprocess.CompletedProcess[str]:
        """Run `shoal` with these arguments; `scratch` is a folder for what it prints."""
        assert self._process.stdin
        assert self._process.stdout
        out, err = scratch / "stdout", scratch / "stderr"
        request = {"arguments": arguments, "cwd": str(cwd), "env": dict(env)}
        request |= {"out": str(out), "err": str(err)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        told = out.read_text("utf-8"), err.read_text("utf-8")
        return subprocess.CompletedProcess(["shoal", *arguments], code, *told)

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """The warm process: a line of JSON is a command, the answer is its exit status."""
    import importlib

    for module in _PRELOADED:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _become(request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(request: Mapping[str, Any]) -> None:
    """Be the command, in the child; never returns."""
    status = 1
    try:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        for number, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(name, flags, 0o600), number)
        sys.argv = ["shoal", *request["arguments"]]
        from engine.cli.main import main as shoal

        shoal()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
