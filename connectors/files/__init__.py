"""Files as sources: NumPy archives, Parquet, JSON lines.

It may import the contracts only. Begin with `source`.
"""
