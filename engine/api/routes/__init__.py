"""The routes under /v1, and the daemon's health. Each handler names the parts of the context that it uses."""
