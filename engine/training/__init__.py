"""Training of both kinds of models: data sets, generated collections, roll-outs, training runs, reports.

It may import the contracts, `system`, `index`, `model`, `clustering` and `evaluation`, and the readers of
labelled files. Begin with `train`.
"""
