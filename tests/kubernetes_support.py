"""What `kubectl kustomize` makes of `deploy/k8s`, and what in it is ours."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "k8s"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")

Resource = dict[str, Any]


@cache
def rendered(overlay: str) -> list[Resource]:
    """The resources of an overlay, as they would be applied."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl 1.25 or newer, for `kubectl kustomize`")
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def find(overlay: str, kind: str, name: str) -> Resource:
    """The one resource of a kind and a name; generated names end in a hash."""
    named = [
        resource
        for resource in rendered(overlay)
        if resource["kind"] == kind and (resource["metadata"]["name"] + "-").startswith(name + "-")
    ]
    assert len(named) == 1, f"{overlay}: {kind} {name}: {[resource['metadata']['name'] for resource in named]}"
    return named[0]


def workloads(overlay: str) -> list[Resource]:
    """What makes pods."""
    return [resource for resource in rendered(overlay) if resource["kind"] in WORKLOADS]


def pod_of(workload: Resource) -> Resource:
    """The pod's specification."""
    pod: Resource = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Resource) -> Resource:
    """The only container."""
    (container,) = pod_of(workload)["containers"]
    return dict(container)


def environment_of(overlay: str, workload: Resource) -> dict[str, str]:
    """The variables that its ConfigMaps set."""
    names = [source["configMapRef"]["name"] for source in container_of(workload).get("envFrom", [])]
    return {name: value for source in names for name, value in find(overlay, "ConfigMap", source)["data"].items()}
