"""Tests share the machine: what can be spread over processes stays in one, unless a test says otherwise."""

import os

os.environ.setdefault("FINJEPA_COMPUTE", "local:1")
