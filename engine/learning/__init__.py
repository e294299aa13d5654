"""Embedding spaces: how consistent one threshold is over classes, and training that makes it so.

May import `system` and `training`; only `cli` imports it. Begin with `opis`, the measure; `training` teaches
a network with a loss of `losses`.
"""
