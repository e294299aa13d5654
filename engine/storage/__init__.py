"""The durable state of a collection in LMDB: the on-disk format, commits, readers, the event log, backups.

It may import the contracts and `system`; never `clustering`.
Begin with `schema`, which documents every table byte by byte; then `tables` and `store`.
"""
