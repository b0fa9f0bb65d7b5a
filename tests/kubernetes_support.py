"""What `kubectl kustomize` makes of `deploy/k8s`, and what in it is ours.

It is recorded in `tests/golden/kubernetes`, so that it is checked where there is no kubectl too. A record names the
digest of the files it was made from; texts that are files of their own stand there as `file:PATH`.
"""

import hashlib
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
FOLDER = DEPLOY / "k8s"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
RECORDS = ROOT / "tests" / "golden" / "kubernetes"
SCHEMAS = ROOT / "tests" / "kubernetes_schemas"
"""One for each kind of resource that other projects define: of theirs only what our manifests use, and nothing else
passes. An API server would drop an unknown field without a word. Each says where it is from."""
CUSTOM = sorted(path.stem for path in SCHEMAS.glob("*.json"))
HAS_KUBECTL = shutil.which("kubectl") is not None

Resource = dict[str, Any]


def rendered(overlay: str) -> list[Resource]:
    """The resources of an overlay, as they would be applied."""
    return by_kubectl(overlay) if HAS_KUBECTL else recorded(overlay)


@cache
def by_kubectl(overlay: str) -> list[Resource]:
    """What `kubectl kustomize` of version 1.25 or newer makes."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


@cache
def recorded(overlay: str) -> list[Resource]:
    """What it made when it was recorded."""
    resources = list(yaml.safe_load_all((RECORDS / f"{overlay}.yaml").read_text(encoding="utf-8")))
    for texts in _texts(resources):
        for name, text in texts.items():
            if text.startswith("file:"):
                texts[name] = (DEPLOY / text.removeprefix("file:")).read_text(encoding="utf-8")
    return resources


@cache
def custom_validator(kind: str) -> jsonschema.Draft202012Validator:
    """Of a kind that another project defines."""
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def validate(resource: Resource, version: str) -> None:
    """Raises what kubernetes_validate or jsonschema raise if a Kubernetes of this version would not take it all."""
    if resource["kind"] in CUSTOM:
        custom_validator(resource["kind"]).validate(resource)
    else:
        kubernetes_validate.validate(resource, version, strict=True)


def record(overlay: str) -> None:
    """Write down what kubectl makes now."""
    files = {path.read_text(encoding="utf-8"): path for path in sorted(DEPLOY.rglob("*.json"))}
    resources: list[Resource] = yaml.safe_load(yaml.safe_dump(by_kubectl(overlay)))
    for texts in _texts(resources):
        for name, text in texts.items():
            if text in files:
                texts[name] = f"file:{files[text].relative_to(DEPLOY)}"
    RECORDS.mkdir(exist_ok=True)
    text = f"# {digest()}\n" + yaml.safe_dump_all(resources, width=120)
    (RECORDS / f"{overlay}.yaml").write_text(text, encoding="utf-8")


@cache
def digest() -> str:
    """Of all files that manifests are made from, with their names."""
    files = sorted(path for name in ("k8s", "envoy", "grafana") for path in (DEPLOY / name).rglob("*"))
    total = hashlib.sha256()
    for path in files:
        if path.suffix in (".yaml", ".yml", ".json"):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(DEPLOY).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _texts(resources: list[Resource]) -> list[dict[str, str]]:
    return [resource.get("data", {}) for resource in resources if resource["kind"] == "ConfigMap"]


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
