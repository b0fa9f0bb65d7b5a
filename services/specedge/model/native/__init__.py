"""The CPU engine in plain C: built beforehand or once with the compiler at hand, and left out where neither is."""

import ctypes
import logging
from pathlib import Path

from specedge.model.native.build import PREBUILT, load_library
from specedge.model.native.engine import declare
from specedge.model.native.self_test import find_fault

logger = logging.getLogger(__name__)


def load_native(
    cache: Path | None = None, compiler: str | None = None, prebuilt: Path = PREBUILT
) -> ctypes.CDLL | None:
    """The native library, built and tested; None, with the reason logged, where it cannot be used.

    Args:
        cache, compiler, prebuilt: as `build.load_library` takes them.
    """
    library = load_library(cache, compiler, prebuilt)
    if library is None:
        return None
    declare(library)
    if reason := find_fault(library):
        logger.warning("native engine: self-test failed, not used: %s", reason)
        return None
    return library
