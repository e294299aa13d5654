"""Benchmarks: each prints the machine, a table and its figures, and writes them with --json FILE."""

import engine  # noqa: F401  (OpenMP's passive waiting holds for peers too)
