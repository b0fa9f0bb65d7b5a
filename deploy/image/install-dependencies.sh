#!/bin/sh
# Makes /opt/specedge: what SpecEdge needs, without SpecEdge and without anything that only builds.
#   install-dependencies.sh cpu|gpu CPU_INDEX
set -eu
variant=$1 cpu_index=$2
python3 -m venv --without-pip /opt/specedge
pip() { python3 -m pip --python /opt/specedge/bin/python install -c requirements.lock "$@"; }
pinned() { grep -E "^($1)==" requirements.lock; }

case $variant in
    cpu) pip --no-deps --extra-index-url "$cpu_index" --retries 0 --timeout 10 "$(pinned torch)" ;;
    gpu) ;;
    *) echo "VARIANT is cpu or gpu, not '$variant'" >&2; exit 1 ;;
esac
/opt/specedge/bin/python - "$variant" >requirements.txt <<'END'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = ["tracing", "gpu"] if sys.argv[1] == "gpu" else ["tracing"]
print(*project["dependencies"], *(each for name in extras for each in project["optional-dependencies"][name]), sep="\n")
END
pip -r requirements.txt
# xgrammar names triton, which it does without here and PyTorch's CUDA build brings itself.
pip --no-deps $(pinned 'apache-tvm-ffi|llguidance|xgrammar')

packages=$(/opt/specedge/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo /opt/specedge/app >"$packages/specedge.pth"
# A third less: headers, symbols and tests of others.
rm -rf "$packages/torch/include" "$packages/torch/test" "$packages/torch/share"
find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete
for package in mpmath networkx numpy sympy; do
    find "$packages/$package" -depth -type d -name tests -exec rm -rf {} +
done
find "$packages" -name '*.a' -delete
strip --strip-unneeded "$packages/torch/lib/libtorch_cpu.so" "$packages/torch/lib/libtorch_python.so"
if [ "$variant" = cpu ] && ! /opt/specedge/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    echo "PyTorch without CUDA was not found at $cpu_index; another index: --build-arg CPU_INDEX=URL" >&2
    exit 1
fi
