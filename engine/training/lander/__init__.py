"""Training of `lander`, the paper's model: its network, its graphs, and the metric that it begins with.

It imports what `engine.training` does, and that package. Begin reading at `train`.
"""
