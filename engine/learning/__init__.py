"""Embedding spaces: the consistency of one threshold over classes, and training that improves it.

It may import the contracts, `system`, `model`, `evaluation` and the file readers; only `cli` imports it.
Begin with `opis`, the measure. Its module `training` trains the networks of `adapt` and `encoder` with a loss
of `losses`; `judge` compares the space before and after.
"""
