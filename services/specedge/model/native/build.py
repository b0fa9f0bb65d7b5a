"""Builds the native library once per source, compiler and processor type, and keeps it in the user's cache folder.

An installation may carry a library built beforehand, for machines without a compiler (`prebuild.py`).
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
PREBUILT = SOURCES / "prebuilt"
COMPILERS = ("cc", "gcc", "clang")
# No contraction: the sources say themselves where a multiply-add is fused, so that no compiler changes a sum.
ARITHMETIC_FLAGS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", *ARITHMETIC_FLAGS)
AVX2_FLAGS = ("-mavx2", "-mfma")
AVX512_FLAGS = (*AVX2_FLAGS, "-mavx512f")
BUILD_SECONDS = 120.0


class BuildError(Exception):
    """The library cannot be built here."""


def load_library(
    cache: Path | None = None, compiler: str | None = None, prebuilt: Path = PREBUILT
) -> ctypes.CDLL | None:
    """The native library, built if it is neither in the installation nor in the cache.

    None, with the reason logged, where that cannot be.

    Args:
        cache: folder that keeps the library; None: `specedge/native` in the user's cache folder.
        compiler: command or path of a C compiler; None: $CC, or the first of cc, gcc and clang.
        prebuilt: folder of libraries built beforehand, as `prebuild` leaves them.
    """
    try:
        if library := _load_prebuilt(prebuilt):
            return library
        command = find_compiler(compiler)
        folder = cache or user_cache()
        path = folder / f"{library_key(command)}.so"
        if path.is_file():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                logger.warning("native engine: %s cannot be loaded (%s) and is built again", path, error)
        return _build_and_load(command, path)
    except (BuildError, OSError) as error:
        logger.warning("native engine: not built: %s", error)
        return None


def prebuild(folder: Path = PREBUILT, compiler: str | None = None) -> Path:
    """Builds the library for every processor of this machine's kind and puts it where `load_library` looks first.

    Returns:
        The library's path; any user can read it.

    Raises:
        BuildError, OSError: it cannot be built, or not be written.
    """
    path = folder / f"{source_key()}.so"
    with tempfile.TemporaryDirectory(prefix="specedge-native-") as scratch:
        built = _compile(find_compiler(compiler), Path(scratch), time.monotonic() + BUILD_SECONDS)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, path)
    path.chmod(0o644)
    return path


def _load_prebuilt(folder: Path) -> ctypes.CDLL | None:
    path = folder / f"{source_key()}.so"
    if not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        logger.warning("native engine: %s cannot be loaded (%s)", path, error)
        return None
    logger.info("native engine: %s, built beforehand", path)
    return library


def user_cache() -> Path:
    """Where built libraries are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "specedge" / "native"


def find_compiler(wanted: str | None = None) -> str:
    """Path of the C compiler.

    Raises:
        BuildError: there is none.
    """
    names = [wanted] if wanted else [os.environ.get("CC", ""), *COMPILERS]
    for name in names:
        if name and (path := shutil.which(name)):
            return path
    raise BuildError(f"no C compiler found (looked for {', '.join(name for name in names if name)})")


def library_key(compiler: str) -> str:
    """Changes with the sources, the flags, the compiler and the processor type."""
    resolved = Path(compiler).resolve()
    stat = resolved.stat()
    key = repr((resolved, stat.st_size, stat.st_mtime_ns, source_key()))
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def source_key() -> str:
    """Changes with the sources, the flags and the processor type, so that another version's library is not taken."""
    key = hashlib.sha256(repr((platform.machine(), _units())).encode())
    for path in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        key.update(path.name.encode() + path.read_bytes())
    return key.hexdigest()[:24]


def _units() -> list[tuple[str, str, tuple[str, ...]]]:
    """Object name, source and flags of every compilation; kernels once per instruction set."""
    units = [(name, f"{name}.c", FLAGS) for name in ("api", "engine", "plan", "pool")]
    kinds: list[tuple[str, tuple[str, ...]]] = [("plain", ())]
    if platform.machine().lower() in ("x86_64", "amd64"):
        kinds += [("avx2", AVX2_FLAGS), ("avx512", AVX512_FLAGS)]
    return units + [(kind, "kernels.c", (*FLAGS, *flags, f"-DKERNELS=specedge_{kind}")) for kind, flags in kinds]


def _build_and_load(compiler: str, path: Path) -> ctypes.CDLL:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="specedge-native-") as scratch:
        built = _compile(compiler, Path(scratch), started + BUILD_SECONDS)
        try:
            _keep(built, path)
            built = path
        except OSError as error:
            logger.warning("native engine: %s cannot be written (%s); the next start builds again", path, error)
        library = ctypes.CDLL(str(built))
    logger.info("native engine: built with %s in %.1f s", compiler, time.monotonic() - started)
    return library


def _keep(built: Path, path: Path) -> None:
    """Copies beside its place first: a rename within one folder is atomic, so no process sees half a library."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as copy:
        try:
            copy.write(built.read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
            Path(copy.name).replace(path)
        except OSError:
            Path(copy.name).unlink()
            raise


def _compile(compiler: str, folder: Path, deadline: float) -> Path:
    commands = [
        [compiler, *flags, "-c", str(SOURCES / source), "-o", str(folder / f"{name}.o")]
        for name, source, flags in _units()
    ]
    objects = [command[-1] for command in commands]
    library = folder / "library.so"
    _run(commands, deadline)
    _run([[compiler, "-shared", "-o", str(library), *objects, "-lpthread", "-lm"]], deadline)
    return library


def _run(commands: list[list[str]], deadline: float) -> None:
    """Runs commands side by side.

    Raises:
        BuildError: one failed, or the deadline passed.
    """
    running: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        for process in running:
            output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.0))
            if process.returncode:
                raise BuildError(f"{' '.join(process.args)} failed: {' '.join(output.split())[:500]}")  # type: ignore[arg-type]
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"the compiler took longer than {BUILD_SECONDS:.0f} s") from error
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()
            if process.stdout is not None:
                process.stdout.close()
