"""Tests share the machine: what can be spread over processes stays in one, unless a test says otherwise. Hypothesis draws few
examples by default, and all of them in `make test-all` (--hypothesis-profile=full)."""

import os

from hypothesis import settings

os.environ.setdefault("FINJEPA_COMPUTE", "local:1")
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("full", max_examples=400, deadline=None)
settings.load_profile("quick")
