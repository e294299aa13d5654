"""Operating-system services: pinned arithmetic, durable files, isolated processes, scheduling, logs.

It may import the contracts only (the modules next to the packages).
Begin with `determinism`, which pins the arithmetic that exactness rests on.
"""
