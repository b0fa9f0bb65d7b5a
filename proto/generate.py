"""Generates the protobuf and gRPC stubs, with type hints, into `services/`.

`python proto/generate.py` writes them; `--check` only compares and exits with 1 when a committed stub differs.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
STUB_ROOT = PROTO_ROOT.parent / "services"
STUB_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(target: Path) -> list[Path]:
    """Writes the stubs of every .proto file below `target`; returns their paths relative to it."""
    sources = sorted(path.relative_to(PROTO_ROOT) for path in PROTO_ROOT.rglob("*.proto"))
    scripts = Path(sysconfig.get_path("scripts"))
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            f"--proto_path={PROTO_ROOT}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *map(str, sources),
        ],
        check=True,
    )
    return [source.with_name(source.stem + suffix) for source in sources for suffix in STUB_SUFFIXES]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a committed stub differs")
    if not parser.parse_args().check:
        for stub in generate(STUB_ROOT):
            print(f"wrote services/{stub}")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        stale = [stub for stub in generate(Path(scratch)) if not is_same(Path(scratch) / stub, STUB_ROOT / stub)]
    for stub in stale:
        print(f"services/{stub} differs from proto/: run `make proto`", file=sys.stderr)
    return 1 if stale else 0


def is_same(fresh: Path, committed: Path) -> bool:
    """Whether the committed stub exists and has the same bytes."""
    return committed.is_file() and fresh.read_bytes() == committed.read_bytes()


if __name__ == "__main__":
    raise SystemExit(main())
