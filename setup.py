"""Build gan_fast._C: CPU kernels always, CUDA kernels where nvcc and a CUDA build of torch are there.

Environment:
    FORCE_CUDA=1          add the CUDA sources also to a torch built without CUDA; an error without nvcc. 0: never.
    TORCH_CUDA_ARCH_LIST  architectures for nvcc, as in torch ("9.0 10.0").
    MAX_JOBS              parallel compile jobs, as in torch.
    GAN_FAST_NATIVE=0     install without the native module: the reference serves. 1: an error where it cannot be built.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# What is built for where there is no GPU to ask.
ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
# Sources are written against this version's stable ABI, so one build loads on it and on everything newer.
TORCH_TARGET = "0x020b000000000000"


def log(message: str) -> None:
    print(f"gan_fast setup: {message}", file=sys.stderr)


def without(reason: str) -> dict:
    """No native module, which is an error where it was asked for by name."""
    if os.environ.get("GAN_FAST_NATIVE") == "1":
        raise SystemExit(f"gan_fast setup: GAN_FAST_NATIVE=1 expected a native module, got none: {reason}")
    log(f"no native module: {reason}")
    return {}


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}"))


def extension_options() -> dict:
    """ext_modules and cmdclass for setup(), empty where there is nothing to build with."""
    if os.environ.get("GAN_FAST_NATIVE", "1") == "0":
        return without("GAN_FAST_NATIVE=0")
    compiler = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    if compiler is None:
        return without("no C++ compiler found; the reference (plain ATen) serves")
    try:
        import pybind11
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        # pip shows nothing of what is logged here: an install without kernels must be wished for.
        raise SystemExit(
            f"gan_fast setup: expected torch, pybind11 and ninja to build with, got: {error}. "
            "pip install torch pybind11 ninja setuptools wheel, then use --no-build-isolation; "
            "or set GAN_FAST_NATIVE=0 to install without kernels"
        ) from error

    cuda_sources = sources("cuda", ".cu")
    force_cuda = os.environ.get("FORCE_CUDA")
    forced = force_cuda == "1"
    if forced and cpp_extension.CUDA_HOME is None:
        # A torch without CUDA does not look for nvcc.
        nvcc = shutil.which("nvcc")
        found = os.environ.get("CUDA_HOME") or (str(Path(nvcc).resolve().parents[1]) if nvcc else None)
        cpp_extension.CUDA_HOME = found
    have_nvcc = cpp_extension.CUDA_HOME is not None
    if forced and not have_nvcc:
        raise SystemExit("gan_fast setup: FORCE_CUDA=1 expected nvcc, got none on PATH or in CUDA_HOME")
    wanted = force_cuda != "0" and (torch.version.cuda is not None or forced)
    with_cuda = bool(cuda_sources) and have_nvcc and wanted

    def native_module(with_cuda: bool) -> object:
        log(f"native module with {compiler}, CUDA {'on' if with_cuda else 'off'}")
        macros = [("TORCH_TARGET_VERSION", TORCH_TARGET)]
        flags = ["-O2", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", "-ffp-contract=off"]
        options = {"sources": ["csrc/schema.cpp", *sources("cpu", ".cpp")], "include_dirs": [pybind11.get_include()]}
        if not with_cuda:
            return cpp_extension.CppExtension("gan_fast._C", define_macros=macros, extra_compile_args=flags, **options)
        if not (torch.cuda.is_available() or "TORCH_CUDA_ARCH_LIST" in os.environ):
            # torch would ask the GPU that is not there.
            os.environ["TORCH_CUDA_ARCH_LIST"] = ARCHITECTURES
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "this GPU").replace(" ", ",").replace(";", ",")
        macros += [("USE_CUDA", None), ("GAN_FAST_CUDA_ARCHITECTURES", architectures)]
        options["sources"] += [*cuda_sources, *sources("cuda", ".cpp")]
        both = {"cxx": flags, "nvcc": ["-O3", "-std=c++20", "-lineinfo"]}
        module = cpp_extension.CUDAExtension("gan_fast._C", define_macros=macros, extra_compile_args=both, **options)
        if torch.version.cuda is None:
            # Not there to link; the torch with CUDA that the module is for brings them, and one without cannot load it.
            module.libraries = [name for name in module.libraries if name not in ("c10_cuda", "torch_cuda")]
        return module

    class OptionalBuild(cpp_extension.BuildExtension):
        """A package that works without its kernels is better than an install that fails."""

        def run(self) -> None:
            # While it runs it is another.
            inplace = self.inplace
            try:
                super().run()
            except Exception as error:
                if not with_cuda or forced:
                    without(f"the build failed ({error})")
                    return
                # The CPU's kernels do not go down with a GPU's, which Triton has too.
                log(f"no CUDA kernels: the build with them failed ({error})")
                distribution = self.distribution
                self.extensions = distribution.ext_modules = [native_module(with_cuda=False)]
                # A command that has run does not run twice: another one in its place, told what this one was.
                del distribution.command_obj["build_ext"]
                again = distribution.get_command_obj("build_ext")
                again.inplace, again.editable_mode = inplace, self.editable_mode
                again.build_lib, again.build_temp = self.build_lib, self.build_temp
                again.ensure_finalized()
                try:
                    super(OptionalBuild, again).run()
                except Exception as other:
                    without(f"the build failed ({other})")

    return {
        "ext_modules": [native_module(with_cuda)],
        "cmdclass": {"build_ext": OptionalBuild.with_options(use_ninja=True)},
    }


setup(**extension_options())
