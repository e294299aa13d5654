"""The processes of `shoal serve`: the supervisor, the writer with its control socket, and the publisher.

It may import the contracts, `system`, `model`, `storage` and `collection`; connectors are handed in.
Begin with `supervisor`, then `writer`.
"""
