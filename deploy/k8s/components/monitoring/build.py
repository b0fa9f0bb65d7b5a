"""Writes `rules.yaml`, the rules of deploy/prometheus as the operator takes them; `--check` says whether it differs."""

import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
RULES = FOLDER.parents[2] / "prometheus" / "rules"
HEAD = "# Written by build.py from deploy/prometheus/rules: change those.\n"


def resources() -> str:
    """A PrometheusRule for each file: names of groups are unique in a file only."""
    documents = [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": f"specedge-{path.name.partition('.')[0]}", "namespace": "specedge"},
            "spec": yaml.safe_load(path.read_text()),
        }
        for path in sorted(RULES.glob("*.rules.yml"))
    ]
    return HEAD + yaml.safe_dump_all(documents, sort_keys=False, width=118)


def main() -> int:
    """Writes the file, or compares; 1 where it differs."""
    path, text = FOLDER / "rules.yaml", resources()
    if "--check" not in sys.argv[1:]:
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        print(f"{path} is not as build.py writes it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
