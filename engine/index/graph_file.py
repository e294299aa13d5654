"""Try an HNSW graph file. hnswlib can crash on a damaged one, so this runs in a process of its own."""

import hnswlib


def load(path: str, dim: str) -> None:
    """Load a graph of vectors of `dim` dimensions. Raises RuntimeError, or ends the process."""
    hnswlib.Index(space="ip", dim=int(dim)).load_index(path)
