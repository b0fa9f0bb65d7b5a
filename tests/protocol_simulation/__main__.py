"""`python -m protocol_simulation`, with tests/ on the path."""

import sys

from protocol_simulation.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
