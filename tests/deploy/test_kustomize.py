"""The manifests as `kubectl` puts them together."""

import shutil
import subprocess

import pytest

from .conftest import REPO


def test_kubectl_puts_all_manifests_together() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl (Debian's package is kubernetes-client)")
    made = subprocess.run([kubectl, "kustomize", REPO / "deploy"], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    kinds = [line.removeprefix("kind: ") for line in made.stdout.splitlines() if line.startswith("kind: ")]
    assert sorted(kinds) == [
        *["ClusterRole"] * 3,
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "Namespace",
        "PodDisruptionBudget",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    ]
    # Each file with `kind` at the left edge is in it, but for those that are applied by themselves.
    files = [*(REPO / "deploy" / "base").glob("*.yaml"), *(REPO / "deploy" / "crd").glob("*.yaml")]
    alone = sum(file.read_text().count("\nkind: ") for file in files)
    assert len(kinds) == alone
