"""Linkage models: features of a k-NN graph, the networks, and the weights that ship; and adapters.

It may import the contracts and `system`, and nothing of the clustering: a model maps one graph to
probabilities.
Begin with `network`, whose first page is the formula, then `linkage`.
"""
