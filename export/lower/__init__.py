"""From the canonical graph to what a backend runs, one module a backend."""
