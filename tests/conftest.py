"""Tests share the machine: what can be spread over processes stays in one, unless a test says otherwise. Hypothesis draws few
examples by default, and all of them in `make test-all` (--hypothesis-profile=full)."""

import os
import signal

from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts commands in the background so, and whatever a test starts would not end by Ctrl-C either.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("FINJEPA_COMPUTE", "local:1")
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("full", max_examples=400, deadline=None)
settings.load_profile("quick")
