"""What the commands of `shoal` do; `engine.cli.main` has their arguments and wires connectors to them."""
