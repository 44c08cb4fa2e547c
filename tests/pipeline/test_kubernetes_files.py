"""The files of deploy/kubernetes fit each other, the pins, and the types of KubeRay and Kubernetes where those are installed."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy" / "kubernetes"
RAY, *POLICIES = yaml.safe_load_all((FILES / "raycluster.yaml").read_text())
VALUES = yaml.safe_load((FILES / "dagster-values.yaml").read_text())
VOLUME, SECRET, HUB_SECRET = yaml.safe_load_all((FILES / "home.yaml").read_text())
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
GROUPS = [RAY["spec"]["headGroupSpec"], *RAY["spec"]["workerGroupSpecs"]]


def test_all_pods_have_one_image_and_the_secret_of_the_store():
    image = f"{CODE['image']['repository']}:{CODE['image']['tag']}"
    for group in GROUPS:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == image
        assert container["envFrom"] == [{"secretRef": {"name": SECRET["metadata"]["name"]}}]
    assert CODE["envSecrets"] == [{"name": secret["metadata"]["name"]} for secret in (SECRET, HUB_SECRET)]
    assert "HF_TOKEN" in HUB_SECRET["stringData"]
    assert "HF_TOKEN" not in SECRET["stringData"]  # which the pods of Ray read too
    assert CODE["volumes"][0]["persistentVolumeClaim"]["claimName"] == VOLUME["metadata"]["name"]
    assert "FINJEPA_ARTIFACTS" in SECRET["stringData"]


def test_versions_are_those_of_the_pins():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert RAY["spec"]["rayVersion"] == pins["ray"]
    assert f"--version {pins['dagster']}" in (FILES / "dagster-values.yaml").read_text()


def test_the_address_is_one_that_the_settings_take(monkeypatch):
    from finjepa_pipeline.settings import Settings

    for variable in CODE["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    assert Settings.from_env().ray_address == f"{RAY['metadata']['name']}-head-svc:6379"


def test_the_code_location_is_a_node_of_the_cluster_that_takes_no_work():
    (node,) = CODE["sidecarContainers"]
    assert node["image"] == f"{CODE['image']['repository']}:{CODE['image']['tag']}"
    assert f"--address={RAY['metadata']['name']}-head-svc:6379" in node["command"]
    assert "--num-cpus=0" in node["command"]
    shared = {mount["name"]: mount["mountPath"] for mount in node["volumeMounts"]}
    assert shared.items() <= {mount["name"]: mount["mountPath"] for mount in CODE["volumeMounts"]}.items()
    assert set(shared) <= {volume["name"] for volume in CODE["volumes"]}


def test_the_run_launcher_can_be_loaded():
    launcher = VALUES["runLauncher"]["config"]["customRunLauncher"]
    assert hasattr(importlib.import_module(launcher["module"]), launcher["class"])


@pytest.mark.skipif(importlib.util.find_spec("dagster_ray") is None, reason="needs the extra ray")
def test_the_cluster_has_the_fields_that_kuberay_has():
    from dagster_ray.kuberay.configs import RayClusterSpec

    known = {_camel(name) for name in RayClusterSpec.model_fields}
    assert set(RAY["spec"]) <= known
    assert RayClusterSpec(**{_snake(name): value for name, value in RAY["spec"].items()})


@pytest.mark.skipif(importlib.util.find_spec("kubernetes") is None, reason="needs the package kubernetes")
def test_pods_and_the_volume_are_what_kubernetes_takes():
    from kubernetes import client

    api = client.ApiClient()
    for content, kind in [
        *((group["template"], "V1PodTemplateSpec") for group in GROUPS),
        (VOLUME, "V1PersistentVolumeClaim"),
        (SECRET, "V1Secret"),
        (CODE["volumes"][0], "V1Volume"),
        (CODE["volumeMounts"][0], "V1VolumeMount"),
        (CODE["resources"], "V1ResourceRequirements"),
    ]:
        read = api.sanitize_for_serialization(api.deserialize(json.dumps(content), kind, "application/json"))
        assert read == content  # a key that the type has not got would be lost


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def test_only_pods_of_finjepa_reach_ray_which_has_no_login():
    assert POLICIES
    for policy in POLICIES:
        assert policy["kind"] == "NetworkPolicy"
        assert "Ingress" in policy["spec"]["policyTypes"]
        assert all(rule["from"] for rule in policy["spec"]["ingress"])
