"""Run, time and measure an artifact with the runtime of its target."""
