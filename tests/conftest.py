from __future__ import annotations

import os

# Two threads on two cores make timing noise and nothing else in tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
