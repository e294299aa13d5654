"""Nearest-neighbour indexes over grid vectors: exact search, HNSW, and the growable columns they share.

It may import the contracts and `system`.
Begin with `base`, which says what an index has to answer.
"""
