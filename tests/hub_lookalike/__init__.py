"""A small Hugging Face Hub on loopback, for tests with the real clients.

It speaks what huggingface_hub and datasets ask of a Hub for models and data sets: accounts, repositories with commits,
tags and access rules, LFS uploads, and downloads with ETag, X-Repo-Commit and ranges. Point a client at it with the
environment of `client_env`, in a process of its own: the clients read HF_ENDPOINT once, when they are imported.

    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files={"data/part-0.parquet": data}, gated=True)
        hub.fail(r"POST .*/commit/", "lose_answer")
        subprocess.run([...], env=hub.client_env(tmp_path, token=WRITER))
        assert len(hub.repo("org/model").commits) == 2
"""

from tests.hub_lookalike.repos import READER, WRITER, Commit, Repo
from tests.hub_lookalike.server import HubLookalike

__all__ = ["READER", "WRITER", "Commit", "HubLookalike", "Repo"]
