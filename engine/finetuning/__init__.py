"""Fine-tuning of the universal model: on a few labelled classes of a collection, or on many of a space.

It may import the contracts, `system`, `model`, `evaluation` and `training`, and the readers of labelled
files; only `cli` imports it. Begin with `finetune`, for a few classes, or `space`.
"""
