"""Embedding spaces: how consistent one threshold is over classes, and training that makes it so.

May import `system`, `model`, `evaluation` and `training`; only `cli` imports it. Begin with `opis`, the
measure. `training` teaches the networks of `adapt` and `encoder` with a loss of `losses`, and `judge` says
whether that helped.
"""
