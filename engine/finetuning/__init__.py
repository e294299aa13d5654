"""Fine-tuning of the universal model on a few labelled classes of one collection.

It may import the contracts, `system`, `model`, `evaluation` and `training`; only `cli` imports it. Begin with
`finetune`.
"""
