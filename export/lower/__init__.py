"""ONNX to the format of a backend, and the two settings that every backend offers."""

LATENCY_FIRST = "latency-first"
MEMORY_FIRST = "memory-first"
SETTINGS = (LATENCY_FIRST, MEMORY_FIRST)
