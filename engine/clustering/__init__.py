"""Incremental Hi-LANDER: a batch of items in, the change of the stored state out, without touching a disk.

It may import the contracts, `system` and `index`; never `storage`, and a model only through the protocol
in `level`.
Begin with `pipeline`, the whole way of a batch on one page.
"""
