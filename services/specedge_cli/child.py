"""`python -m specedge_cli.child PARENT COMMAND ...` runs a command that ends when its parent process ends.

On Linux the kernel sends SIGTERM when the parent goes, even by SIGKILL, so that a killed demo leaves nothing running.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        return 1

    from specedge_cli.main import main as run_command

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
