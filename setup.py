"""Drives CMake from pip: CMakeLists.txt alone knows the sources and flags, this file where the result goes.

Settings, from the environment because pip has no other way through:
    LGRECO_CUDA         auto (default), 1 or 0; see CMakeLists.txt
    LGRECO_CUDA_ARCHS   such as "90" or "80;90;100" (CMake's CMAKE_CUDA_ARCHITECTURES)
    LGRECO_MPI          auto (default), 1 or 0; the MPI transport
    LGRECO_TESTS        1 also builds the C++ tests
    LGRECO_BUILD_TYPE   Release (default), Debug or RelWithDebInfo
    LGRECO_BUILD_DIR    where CMake works; by default build/torch-<version>-<python>, so that another torch never meets
                        object files of this one
    MAX_JOBS            compile jobs; by default one for each core
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

REPOSITORY = Path(__file__).resolve().parent
RECORD = Path("lgreco", "_build.json")


class CMakeBuild(build_ext):
    """Configures, builds and installs `lgreco/_C` with CMake, and notes beside it what it was built with."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the one extension there is; setuptools says where it goes, in place or into the wheel."""
        torch = installed_torch()
        cmake = program("cmake")
        build_dir = Path(os.environ.get("LGRECO_BUILD_DIR") or default_build_dir(torch.__version__)).resolve()
        prefix = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        subprocess.run([cmake, "-S", REPOSITORY, "-B", build_dir, *configuration()], check=True)
        subprocess.run([cmake, "--build", build_dir, "--parallel", jobs], check=True)
        subprocess.run([cmake, "--install", build_dir, "--prefix", prefix], check=True)
        record = {
            "version": self.distribution.get_version(),
            "commit": commit(),
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "cuda": has_cuda(build_dir),
        }
        (prefix / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """For an editable install: setuptools knows of the module, not of the record beside it."""
        super().copy_extensions_to_source()
        shutil.copyfile(Path(self.build_lib) / RECORD, REPOSITORY / RECORD)


def configuration() -> list[str]:
    """CMake's arguments; what the environment leaves open, CMakeLists.txt decides."""
    environ = os.environ
    settings = {
        "Python_EXECUTABLE": sys.executable,
        "CMAKE_BUILD_TYPE": environ.get("LGRECO_BUILD_TYPE", "Release"),
        "LGRECO_CUDA": environ.get("LGRECO_CUDA", "auto"),
        "LGRECO_MPI": environ.get("LGRECO_MPI", "auto"),
        "LGRECO_TESTS": environ.get("LGRECO_TESTS"),
        "CMAKE_CUDA_ARCHITECTURES": environ.get("LGRECO_CUDA_ARCHS"),
    }
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={program('ninja')}"]
    return generator + [f"-D{key}={value}" for key, value in settings.items() if value]


def installed_torch():  # noqa: ANN201  # a module
    """The torch to compile against: the one that is installed, never one of pip's isolated build environment."""
    try:
        import torch
    except ImportError:
        raise SystemExit(
            "lgreco is compiled against the installed torch, and none can be imported here: install torch, then run "
            "pip install --no-build-isolation . (without that flag pip hides the installed torch from the build)"
        ) from None
    return torch


def program(name: str) -> str:
    """A build tool's path: that of this Python's environment, which need not be activated, before PATH's."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"lgreco needs {name} to build and found none; install it: pip install {name}")
    return found


def default_build_dir(torch_version: str) -> Path:
    """One folder for each pair of torch and Python."""
    return REPOSITORY / "build" / f"torch-{torch_version}-{sys.implementation.cache_tag}"


def has_cuda(build_dir: Path) -> bool:
    """Whether CMake built the CUDA kernels; CMakeLists.txt decides and notes it in its cache."""
    cache = (build_dir / "CMakeCache.txt").read_text(encoding="utf-8")
    return "LGRECO_HAS_CUDA:INTERNAL=TRUE" in cache.splitlines()


def commit() -> str:
    """The repository's commit, with + where files differ from it; unknown outside a repository."""
    try:
        described = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


setup(ext_modules=[Extension("lgreco._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
