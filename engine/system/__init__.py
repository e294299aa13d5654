"""What Shoal needs of the machine: pinned arithmetic, durable files, isolated children, scheduling, logs.

It may import the contracts only (the modules beside the packages).
Begin with `determinism`, which pins the arithmetic that exactness rests on.
"""
