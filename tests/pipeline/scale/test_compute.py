"""FINJEPA_COMPUTE: local work imports nothing of Ray, and what is wrong with an address is one line."""

import importlib.util
import subprocess
import sys

import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.scale.cluster import connected
from finjepa_pipeline.scale.rank_host import interface_of
from finjepa_pipeline.settings import Settings


@pytest.mark.parametrize("address", ["auto", "head.cluster:6379", "ray://10.0.0.1:10001"])
def test_addresses_of_clusters_are_read(monkeypatch, address):
    monkeypatch.setenv("FINJEPA_COMPUTE", address)
    assert Settings.from_env().ray_address == address


@pytest.mark.parametrize("text", ["Local", "head", "http://head:8265", "head:port", "a b:1"])
def test_what_is_no_address_is_told(monkeypatch, text):
    monkeypatch.setenv("FINJEPA_COMPUTE", text)
    with pytest.raises(FinJEPAError, match="FINJEPA_COMPUTE"):
        Settings.from_env()


def test_work_is_local_unless_a_cluster_is_named(monkeypatch):
    monkeypatch.delenv("FINJEPA_COMPUTE", raising=False)
    assert Settings.from_env().ray_address is None


def test_a_cluster_that_is_not_there_is_one_line():
    reason = "not installed" if importlib.util.find_spec("ray") is None else "no Ray cluster at"
    with pytest.raises(FinJEPAError, match=reason) as told, connected("127.0.0.1:1"):
        pass
    assert "\n" not in str(told.value)


def test_nothing_of_ray_is_imported_with_the_pipeline():
    program = (
        "import sys, finjepa_pipeline.training.run, finjepa_pipeline.scale.ranks, finjepa_pipeline.scale.walks;"
        "sys.exit(any(name == 'ray' or name.startswith('ray.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_the_interface_of_an_address_is_found():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None
