"""Training of `lander`, the model of the paper: its network in DGL, its graphs, the metric that it begins with.

It imports what `engine.training` does, and that package.
Begin reading at `train`.
"""
