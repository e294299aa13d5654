"""One collection, whole: clustering joined with storage, and the operations on it (assign, rebuild, erase,
check).

It may import the contracts, `system`, `index`, `model`, `clustering` and `storage`.
Begin with `collection`, which holds `Engine`, the library's entry point.
"""
