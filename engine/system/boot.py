"""Runs a module in a process that imports nothing from the current folder; see `isolation.command`.

It is run as a file, `python -I boot.py PATHS MODULE ARGUMENTS...`, and imports nothing of Shoal.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    paths, module = sys.argv[1:3]
    del sys.argv[1:3]
    sys.path[:] = paths.split(os.pathsep)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
