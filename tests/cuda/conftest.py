from __future__ import annotations

import ctypes
import os
import shutil

import pytest
from cuda_emulated import build


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    if os.environ.get("GAN_FAST_EMULATE") == "0":
        pytest.skip("GAN_FAST_EMULATE=0")
    return build(tmp_path_factory.mktemp("emulated"))
