"""The linkage model: features of a k-NN graph, the network, and the weights that ship.

It may import the contracts and `system`, and nothing of the clustering: a model sees one graph and returns
probabilities.
Begin with `linkage`, whose first page is the formula.
"""
