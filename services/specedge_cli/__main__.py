"""`python -m specedge_cli` is the `specedge` command."""

import sys

from specedge_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
