"""Layers and models that use one matrix both straight and transposed, and their training."""
