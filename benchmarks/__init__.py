"""Benchmarks: each prints the machine, a table and its figures, and writes them with --json FILE."""
