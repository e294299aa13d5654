"""Evaluation: scores against labels, and labelled collections clustered in bulk or as a stream.

It may import the contracts, `system`, `index`, `model`, `clustering` and `collection`, and the file readers.
Begin with `evaluate`.
"""
