"""Compiles every ``src/fastplug/**/*.pyx`` into an extension of its own; everything else is in pyproject.toml.

FASTPLUG_BUILD chooses the kind of build (default ``release``):

    release   optimised, unchecked indexing, no assertions
    debug     -O1 -g, assertions and bounds checks; the C macro FASTPLUG_DEBUG is 1: counters and named stopping points
    trace     debug plus line tracing, for coverage (ci/trace-coverage)
    asan      debug under AddressSanitizer and UndefinedBehaviorSanitizer (ci/asan)

Generated C (but for trace) lives in build/<kind>/c/, once for all Pythons, and that of what cimports numpy, which brings its own
declarations, in build/<kind>/numpy-<version>/c/; objects live in build/<kind>/<python>/. The shared objects in src/ are of one kind at a
time; build/kind-<python> remembers which, and a change of kind removes the others first.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("src") / "fastplug"
KINDS = ("release", "debug", "trace", "asan")
JOBS = 2

DIRECTIVES: dict[str, Any] = {
    "language_level": 3,
    "embedsignature": True,
    "binding": True,
    "cdivision": True,
    "wraparound": False,
    "boundscheck": False,
    "initializedcheck": False,
}
CHECKED = {"boundscheck": True, "initializedcheck": True}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def chosen_kind() -> str:
    kind = os.environ.get("FASTPLUG_BUILD") or "release"
    if kind not in KINDS:
        raise SystemExit(f"FASTPLUG_BUILD={kind!r} is not one of {', '.join(KINDS)}")
    return kind


def directives(kind: str) -> dict[str, Any]:
    checked = {} if kind == "release" else CHECKED
    traced = {"linetrace": True} if kind == "trace" else {}
    return DIRECTIVES | checked | traced


def macros(kind: str) -> list[tuple[str, str | None]]:
    if kind == "release":
        return [("FASTPLUG_DEBUG", "0"), ("CYTHON_WITHOUT_ASSERTIONS", "1")]
    if kind == "trace":
        # With sys.monitoring in use, Python 3.13 loses every .pyx from the report without a word.
        return [("FASTPLUG_DEBUG", "1"), ("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    return [("FASTPLUG_DEBUG", "1")]


def compile_flags(kind: str) -> list[str]:
    if kind == "release":
        return ["-O3", "-g1"]
    return ["-O1", "-g", *(SANITIZERS if kind == "asan" else [])]


class Module(Extension):
    """One .pyx. Hashable, which exclude_failures needs: Extension itself is a dataclass in newer releases of setuptools."""

    __hash__ = object.__hash__

    @property
    def with_numpy(self) -> bool:
        return self.name.rpartition(".")[2].startswith("_ndarray")


def extension(pyx: Path, kind: str) -> Module:
    module = Module(
        ".".join(pyx.relative_to("src").with_suffix("").parts),
        [str(pyx)],
        include_dirs=[str(SOURCES / "shm")],
        define_macros=[
            *macros(kind),
            ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
            ("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION"),  # the first with allocation handlers
        ],
        extra_compile_args=compile_flags(kind),
        extra_link_args=SANITIZERS[:1] if kind == "asan" else [],
        depends=[str(header) for header in sorted(SOURCES.rglob("*.h"))],
    )
    if module.with_numpy:
        import numpy as np

        module.include_dirs.append(np.get_include())
    return module


class BuildExtensions(build_ext):
    """Cythonizes when extensions are built, and only then; one broken .pyx does not keep the others from being built."""

    def finalize_options(self) -> None:
        self.kind = chosen_kind()
        wanted = self.distribution.ext_modules or []
        self.distribution.ext_modules = [
            *self.translated([module for module in wanted if not module.with_numpy], "c"),
            *self.translated([module for module in wanted if module.with_numpy], f"numpy-{version('numpy')}/c"),
        ]
        self.broken = sorted({module.name for module in wanted} - {module.name for module in self.distribution.ext_modules})
        super().finalize_options()
        self.build_temp = f"build/{self.kind}/{sys.implementation.cache_tag}"
        if self.inplace:
            self.build_lib = self.build_temp
        self.parallel = self.parallel or JOBS

    def translated(self, modules: list[Module], c_folder: str) -> list[Extension]:
        """``modules`` with generated C for their sources; without those that are broken."""
        from Cython.Build import cythonize

        return cythonize(
            modules,
            # Cython's coverage plugin looks for the C source beside the .pyx and nowhere else.
            build_dir=None if self.kind == "trace" else f"build/{self.kind}/{c_folder}",
            compiler_directives=directives(self.kind),
            nthreads=JOBS,
            emit_linenums=self.kind != "release",
            exclude_failures=True,
        )

    def run(self) -> None:
        if self.inplace:
            self.forget_other_kind()
        super().run()
        if self.broken:
            raise SystemExit(f"not built, see the Cython errors above: {', '.join(self.broken)}")

    def forget_other_kind(self) -> None:
        """Removes shared objects of another kind before the first new one is written: whatever stands in src/ is of one kind."""
        remembered = Path("build") / f"kind-{sys.implementation.cache_tag}"
        if remembered.exists() and remembered.read_text() == self.kind:
            return
        for built in SOURCES.rglob("*" + sysconfig.get_config_var("EXT_SUFFIX")):
            built.unlink()
        remembered.parent.mkdir(exist_ok=True)
        remembered.write_text(self.kind)


os.chdir(Path(__file__).resolve().parent)
setup(
    ext_modules=[extension(pyx, chosen_kind()) for pyx in sorted(SOURCES.rglob("*.pyx"))],
    cmdclass={"build_ext": BuildExtensions},
)
