"""How models are trained: data sets, generated topics, roll-outs, the two networks' courses, reports.

It may import the contracts, `system`, `index`, `model`, `clustering` and `evaluation`. Begin with `train`.
"""
