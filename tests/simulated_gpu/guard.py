"""Compile and load guard.cpp, without torch, which must not be imported before the library is loaded."""

import ctypes
import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


def _folder_of_torch() -> Path:
    found = find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def build_guard(folder: Path) -> Path:
    """Compile guard.cpp, unless the folder holds the library for this torch, and return the library.

    Raises:
        RuntimeError: If there is no compiler.
    """
    library = folder / f"guard-{version('torch')}.so"
    if not library.is_file():
        if shutil.which("g++") is None:
            raise RuntimeError("no g++")
        include = _folder_of_torch() / "include"
        source, aside = Path(__file__).with_name("guard.cpp"), library.with_suffix(".tmp")
        command = ["g++", "-shared", "-fPIC", "-O0", "-std=c++20", f"-I{include}", "-o", str(aside), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        aside.rename(library)
    return library


def load_guard(library: Path) -> None:
    """Load the library after the libraries of torch that it needs."""
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_folder_of_torch() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))
