"""Build the extension gan_fast._C: CPU kernels, and CUDA kernels if there are nvcc and a torch built with CUDA.

Environment:
    FORCE_CUDA            1: build CUDA kernels also with a torch built without CUDA; fails without nvcc. 0: do not.
    TORCH_CUDA_ARCH_LIST  architectures for nvcc, as in torch ("9.0 10.0").
    MAX_JOBS              number of parallel compile jobs, as in torch.
    GAN_FAST_NATIVE       0: install without the extension, which leaves the reference (plain PyTorch). 1: fail if the
                          extension cannot be built.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# CUDA architectures to build for on a machine without a GPU.
ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
# The sources use the stable ABI of torch 2.11, so a build loads with that version and all newer ones.
TORCH_TARGET = "0x020b000000000000"


def log(message: str) -> None:
    print(f"gan_fast setup: {message}", file=sys.stderr)


def without_extension(reason: str) -> dict:
    """Return no options for setup(), or exit if GAN_FAST_NATIVE=1 requires the extension."""
    if os.environ.get("GAN_FAST_NATIVE") == "1":
        raise SystemExit(f"gan_fast setup: cannot build the extension that GAN_FAST_NATIVE=1 requires: {reason}")
    log(f"building without the extension: {reason}")
    return {}


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}"))


def extension_options() -> dict:
    """Return ext_modules and cmdclass for setup(); empty if the extension is not built."""
    if os.environ.get("GAN_FAST_NATIVE", "1") == "0":
        return without_extension("GAN_FAST_NATIVE=0")
    compiler = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    if compiler is None:
        return without_extension("no C++ compiler found; gan_fast will use the reference (plain PyTorch)")
    try:
        import pybind11
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        # An error instead of a log line, which pip does not show: installing without kernels must be deliberate.
        raise SystemExit(
            f"gan_fast setup: building needs torch, pybind11 and ninja: {error}. "
            "Run `pip install torch pybind11 ninja setuptools wheel` and install with --no-build-isolation, "
            "or set GAN_FAST_NATIVE=0 to install without kernels"
        ) from error

    cuda_sources = sources("cuda", ".cu")
    force_cuda = os.environ.get("FORCE_CUDA")
    forced = force_cuda == "1"
    if forced and cpp_extension.CUDA_HOME is None:
        # A torch built without CUDA does not search for nvcc.
        nvcc = shutil.which("nvcc")
        found = os.environ.get("CUDA_HOME") or (str(Path(nvcc).resolve().parents[1]) if nvcc else None)
        cpp_extension.CUDA_HOME = found
    have_nvcc = cpp_extension.CUDA_HOME is not None
    if forced and not have_nvcc:
        raise SystemExit("gan_fast setup: FORCE_CUDA=1 needs nvcc on PATH or in CUDA_HOME")
    wanted = force_cuda != "0" and (torch.version.cuda is not None or forced)
    with_cuda = bool(cuda_sources) and have_nvcc and wanted

    def extension(with_cuda: bool) -> object:
        log(f"building the extension with {compiler}, CUDA {'on' if with_cuda else 'off'}")
        macros = [("TORCH_TARGET_VERSION", TORCH_TARGET)]
        flags = ["-O2", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", "-ffp-contract=off"]
        options = {"sources": ["csrc/schema.cpp", *sources("cpu", ".cpp")], "include_dirs": [pybind11.get_include()]}
        if not with_cuda:
            return cpp_extension.CppExtension("gan_fast._C", define_macros=macros, extra_compile_args=flags, **options)
        if not (torch.cuda.is_available() or "TORCH_CUDA_ARCH_LIST" in os.environ):
            # Otherwise torch queries the GPU for its architecture.
            os.environ["TORCH_CUDA_ARCH_LIST"] = ARCHITECTURES
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "this GPU").replace(" ", ",").replace(";", ",")
        macros += [("USE_CUDA", None), ("GAN_FAST_CUDA_ARCHITECTURES", architectures)]
        options["sources"] += [*cuda_sources, *sources("cuda", ".cpp")]
        both = {"cxx": flags, "nvcc": ["-O3", "-std=c++20", "-lineinfo"]}
        module = cpp_extension.CUDAExtension("gan_fast._C", define_macros=macros, extra_compile_args=both, **options)
        if torch.version.cuda is None:
            # This torch lacks these libraries. The torch with CUDA that will load the extension provides them.
            module.libraries = [name for name in module.libraries if name not in ("c10_cuda", "torch_cuda")]
        return module

    class OptionalBuild(cpp_extension.BuildExtension):
        """Installs without kernels if the build fails, since the package also works without them."""

        def run(self) -> None:
            # super().run() temporarily changes `inplace`; save it.
            inplace = self.inplace
            try:
                super().run()
            except Exception as error:
                if not with_cuda or forced:
                    without_extension(f"the build failed ({error})")
                    return
                # Build the CPU kernels alone: a GPU also has Triton's kernels.
                log(f"building without CUDA kernels: the build with them failed ({error})")
                distribution = self.distribution
                self.extensions = distribution.ext_modules = [extension(with_cuda=False)]
                # distutils runs a command only once, so create a new one with the same options.
                del distribution.command_obj["build_ext"]
                again = distribution.get_command_obj("build_ext")
                again.inplace, again.editable_mode = inplace, self.editable_mode
                again.build_lib, again.build_temp = self.build_lib, self.build_temp
                again.ensure_finalized()
                try:
                    super(OptionalBuild, again).run()
                except Exception as other:
                    without_extension(f"the build failed ({other})")

    return {
        "ext_modules": [extension(with_cuda)],
        "cmdclass": {"build_ext": OptionalBuild.with_options(use_ninja=True)},
    }


setup(**extension_options())
