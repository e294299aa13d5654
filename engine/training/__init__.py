"""How models are trained and judged: data sets, roll-outs, ensembles, scores, evaluation.

It may import the contracts, `system`, `index`, `model`, `clustering` and `collection`.
Begin with `train`.
"""
