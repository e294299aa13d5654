"""Embedding spaces: the consistency of one threshold over classes, and training that improves it.

It may import `system`, `model`, `evaluation`, `training` and the file readers; only `cli` imports it. Begin
with `opis`, the measure. `training` trains the networks of `adapt` and `encoder` with a loss of `losses`;
`judge` compares the space before and after.
"""
