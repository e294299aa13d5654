"""Embedding spaces: how consistent one threshold is over classes, and training that makes it so."""
