"""The command line `shoal`: arguments in `main`, one module for each group of commands.

It may import every package, and it alone joins the engine and the connectors.
Begin with `main`.
"""
