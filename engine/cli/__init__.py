"""The command line `shoal`: arguments in `main`, one module for each group of commands.

It may import every package. It hands connectors to the engine; `evaluation`, `training` and `finetuning`
import the connectors' readers of labelled files, too.
Begin with `main`.
"""
