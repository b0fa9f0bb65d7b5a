"""`python -m specedge.model.native.prebuild` puts the native library into an installation, to do without a compiler.

It holds kernels for every instruction set, of which each start takes the processor's own: it may be built elsewhere.
"""

import sys
from pathlib import Path

from specedge.model.native import load_native
from specedge.model.native.build import PREBUILT, BuildError, prebuild


def main(folder: Path = PREBUILT) -> int:
    """Builds and tests the library. Returns the exit code."""
    try:
        path = prebuild(folder)
    except (BuildError, OSError) as error:
        print(f"the native library cannot be built: {error}", file=sys.stderr)
        return 1
    if load_native(prebuilt=folder) is None:
        print(f"{path} fails its self-test here", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
