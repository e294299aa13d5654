"""Fine-tuning the universal model on a few labelled classes of one collection.

It may import the contracts, `system`, `model`, `evaluation` and `training`; only `cli` imports it. Begin with
`finetune`: the start is kept unless classes that were held out say that the other model is better.
"""
