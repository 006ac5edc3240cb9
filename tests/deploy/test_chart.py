"""The Helm chart, rendered by Helm's own library, says what the manifests say."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import REPO

CHART = REPO / "deploy" / "helm" / "kvcache-operator"

EVERYTHING: dict[str, Any] = {
    "replicas": 3,
    "image": {"repository": "registry.example/operator", "tag": "1", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "redisImage": "redis:7",
    "adoptBackends": ["infinistore"],
    "watchNamespace": "models",
    "extraArgs": ["--log=debug"],
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "control-plane"}],
    "podAnnotations": {"note": "x"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
REFUSED: list[dict[str, Any]] = [
    {"replicas": 0},
    {"adoptBackends": ["vineyard"]},
    {"watchNamespace": "Models"},
    {"image": {"repository": "x", "pullPolicy": "Sometimes"}},
    {"unknown": 1},
    {"serverImage": ""},
]

Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def rendered(helm_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    values = tmp_path_factory.mktemp("values") / "values.json"
    values.write_text(json.dumps([{}, EVERYTHING, {"replicas": 1}, *REFUSED]))
    script = REPO / "scripts" / "render_chart.py"
    made = subprocess.run([helm_python, script, CHART, values], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    answer: dict[str, Any] = json.loads(made.stdout)
    return answer


def objects(render: dict[str, Any]) -> Objects:
    return {(item["kind"], item["metadata"]["name"]): item for item in render["objects"]}


def test_lint_finds_nothing(rendered: dict[str, Any]) -> None:
    worse_than_a_hint = [message for message in rendered["lint"]["messages"] if message["severity"] > 1]
    assert rendered["lint"]["errors"] == []
    assert worse_than_a_hint == []


def test_by_default_it_is_what_the_manifests_are(rendered: dict[str, Any], helm_python: str) -> None:
    program = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"

    def manifests(name: str) -> Objects:
        text = (REPO / "deploy" / "base" / name).read_text()
        read = subprocess.run([helm_python, "-c", program], input=text, capture_output=True, text=True, timeout=60)
        return objects({"objects": json.loads(read.stdout)})

    chart = objects(rendered["renders"][0])
    name = "kvcache-operator"
    roles = manifests("rbac.yaml")
    assert chart["ClusterRole", "kv-served"]["rules"] == roles["ClusterRole", name]["rules"]
    assert chart["Role", "kv"]["rules"] == roles["Role", name]["rules"]
    for whose in ["view", "edit"]:
        of_people, theirs = chart["ClusterRole", f"kv-kvcaches-{whose}"], roles["ClusterRole", f"kvcaches-{whose}"]
        assert of_people["rules"] == theirs["rules"]
        aggregation = f"rbac.authorization.k8s.io/aggregate-to-{whose}"
        assert of_people["metadata"]["labels"][aggregation] == theirs["metadata"]["labels"][aggregation] == "true"
    plain = manifests("deployment.yaml")["Deployment", name]["spec"]["template"]["spec"]
    ours = chart["Deployment", "kv"]["spec"]["template"]["spec"]
    assert ours["securityContext"] == plain["securityContext"]
    of_chart, of_manifest = ours["containers"][0], plain["containers"][0]
    for field in ["image", "env", "ports", "livenessProbe", "readinessProbe", "resources", "securityContext"]:
        assert of_chart[field] == of_manifest[field], field
    assert set(of_manifest["args"]) <= set(of_chart["args"])
    kinds = {kind for kind, _ in chart}
    assert {"Deployment", "PodDisruptionBudget", "Service", "ServiceAccount"} <= kinds
    assert "CustomResourceDefinition" not in kinds


def test_every_value_is_used(rendered: dict[str, Any]) -> None:
    chart = objects(rendered["renders"][1])
    deployment = chart["Deployment", "kv"]
    pod = deployment["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert deployment["spec"]["replicas"] == 3
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example/operator:1", "Always")
    wanted = {"--redis-image=redis:7", "--adopt-backends=infinistore", "--watch-namespace=models", "--log=debug"}
    assert wanted <= set(container["args"])
    assert pod["spec"]["imagePullSecrets"] == EVERYTHING["imagePullSecrets"]
    assert pod["spec"]["nodeSelector"] == EVERYTHING["nodeSelector"]
    assert pod["spec"]["tolerations"] == EVERYTHING["tolerations"]
    assert pod["metadata"]["annotations"] == EVERYTHING["podAnnotations"]
    assert chart["ServiceMonitor", "kv"]["metadata"]["labels"]["release"] == "prometheus"
    # Served in one namespace, it has no right outside of it but to its Lease.
    kinds = {kind for kind, _ in chart}
    assert "ClusterRole" not in kinds
    assert "ClusterRoleBinding" not in kinds
    assert chart["Role", "kv-served"]["metadata"]["namespace"] == "models"
    assert chart["RoleBinding", "kv-served"]["subjects"][0]["namespace"] == "caches"


def test_one_replica_has_no_disruption_budget(rendered: dict[str, Any]) -> None:
    # With one, a node could never be drained.
    assert ("PodDisruptionBudget", "kv") not in objects(rendered["renders"][2])


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=lambda index: json.dumps(REFUSED[index]))
def test_the_schema_refuses(rendered: dict[str, Any], index: int) -> None:
    answer = rendered["renders"][3 + index]
    assert next(iter(REFUSED[index])) in answer.get("error", "accepted")


def test_the_chart_folder_has_no_definition() -> None:
    # Helm would apply it once, and never again.
    assert not Path(CHART / "crds").exists()
