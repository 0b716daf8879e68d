"""Shared by every suite: one torch thread, and a Hypothesis profile that is the same everywhere."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile(
    "ramify",
    deadline=None,
    derandomize=True,  # CI must not fail by chance; `--hypothesis-profile default` searches on
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ramify")
