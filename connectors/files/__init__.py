"""Files as sources: NumPy arrays, Arrow and Parquet tables, JSON lines and CSV.

It may import the contracts only. Begin with `source`.
"""
