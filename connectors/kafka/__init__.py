"""Kafka as a source and as a sink.

It may import the contracts only. Begin with `source`, then `values` (what stands in a record) and `sink`;
every workaround for the client library is in `client`.
"""
