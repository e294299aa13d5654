"""Where records come from and where events go: files, HTTP, Kafka, memory.

They may import the contracts only (`engine.records`, `engine.streams`, `engine.events`, ...), never a
package of the engine.
Begin with `memory`, the smallest whole source.
"""
