"""The files of deploy/kubernetes fit each other, the pins, the settings, and the types of KubeRay where that is installed."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from finjepa_pipeline.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy" / "kubernetes"
RAY, *POLICIES = yaml.safe_load_all((FILES / "raycluster.yaml").read_text())
VALUES = yaml.safe_load((FILES / "dagster-values.yaml").read_text())
VOLUME, SECRET, HUB_SECRET = yaml.safe_load_all((FILES / "home.yaml").read_text())
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
GROUPS = [RAY["spec"]["headGroupSpec"], *RAY["spec"]["workerGroupSpecs"]]
IMAGE = f"{CODE['image']['repository']}:{CODE['image']['tag']}"


def test_all_pods_have_one_image_and_the_secret_of_the_store_and_only_the_code_the_token():
    for group in GROUPS:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == IMAGE
        assert container["envFrom"] == [{"secretRef": {"name": SECRET["metadata"]["name"]}}]
    assert CODE["envSecrets"] == [{"name": secret["metadata"]["name"]} for secret in (SECRET, HUB_SECRET)]
    assert "HF_TOKEN" in HUB_SECRET["stringData"]
    assert "HF_TOKEN" not in SECRET["stringData"]  # which the pods of Ray read too
    assert CODE["volumes"][0]["persistentVolumeClaim"]["claimName"] == VOLUME["metadata"]["name"]


def test_the_code_location_is_a_node_of_the_cluster_that_takes_no_work(monkeypatch):
    address = f"{RAY['metadata']['name']}-head-svc:6379"
    for variable in CODE["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    assert Settings.from_env().ray_address == address
    (node,) = CODE["sidecarContainers"]
    assert node["image"] == IMAGE
    assert {f"--address={address}", "--num-cpus=0"} <= set(node["command"])
    shared = {mount["name"]: mount["mountPath"] for mount in node["volumeMounts"]}
    assert shared.items() <= {mount["name"]: mount["mountPath"] for mount in CODE["volumeMounts"]}.items()


def test_versions_are_those_of_the_pins():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert RAY["spec"]["rayVersion"] == pins["ray"]
    assert f"--version {pins['dagster']}" in (FILES / "dagster-values.yaml").read_text()


def test_only_pods_of_finjepa_reach_ray_which_has_no_login():
    assert POLICIES
    for policy in POLICIES:
        assert policy["kind"] == "NetworkPolicy"
        assert "Ingress" in policy["spec"]["policyTypes"]
        assert all(rule["from"] for rule in policy["spec"]["ingress"])


@pytest.mark.skipif(importlib.util.find_spec("dagster_ray") is None, reason="needs the extra ray")
def test_the_cluster_has_the_fields_that_kuberay_has():
    from dagster_ray.kuberay.configs import RayClusterSpec

    own = {re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name): one for name, one in RAY["spec"].items()}
    assert set(own) <= set(RayClusterSpec.model_fields)
    assert RayClusterSpec(**own)
