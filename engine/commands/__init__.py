"""What the commands of `shoal` do; `engine.__main__` has their arguments and wires connectors to them."""
