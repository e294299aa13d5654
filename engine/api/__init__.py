"""The HTTP API and the page: a process that reads the store while the writer works; never imports torch.

It may import the contracts, `system`, `storage` and `daemon` (for the control socket).
Begin with `app`, which puts it together.
"""
