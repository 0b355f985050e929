"""The programs in examples/ run, learn, and write samples."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import gan_fast
from gan_fast.data import load_images

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.fixture
def _one_thread() -> Iterator[None]:
    # Networks this small gain little from a second thread, and lose much if other programs use the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_program(name: str, **constants: float) -> ModuleType:
    """Return a program as a module, with other values for the constants at its top."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not constants.keys() - vars(module).keys()
    vars(module).update(constants)
    return module


def tiles(picture: Path, columns: int, image_size: int) -> np.ndarray:
    """Return the images in a square grid, (columns^2, image_size, image_size) in [0, 255]."""
    with Image.open(picture) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        pixels = np.asarray(image, dtype=np.float64)
    scale = 800 // (columns * image_size)
    cell = scale * image_size + 2
    assert pixels.shape == (columns * cell + 2,) * 2
    cells = pixels[2:, 2:].reshape(columns, cell, columns, cell).swapaxes(1, 2).reshape(-1, cell, cell)
    return cells[:, : cell - 2 : scale, : cell - 2 : scale]


def similarity(samples: np.ndarray) -> float:
    """Return the correlation of the mean sample and the mean digit over pixels."""
    digits = load_images("digits", image_size=samples.shape[-1]).images[:, 0].double().mean(0)
    return float(np.corrcoef(samples.mean(0).ravel(), digits.ravel())[0, 1])


@pytest.fixture
def fused_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the class names of fused models, as fuse_report reads the same for a model that could be fused."""
    names, fuse = [], gan_fast.fuse

    def record(model: nn.Module) -> nn.Module:
        names.append(type(model).__name__)
        return fuse(model)

    monkeypatch.setattr(gan_fast, "fuse", record)
    return names


def assert_finite(history: list[tuple[float, ...]], rows: int) -> None:
    assert len(history) == rows
    assert all(math.isfinite(value) for row in history for value in row)


# No untrained generator reaches this similarity.
LEARNED_SIMILARITY = 0.5
# Networks that learn within a second or two.
SMALL = {
    "fused_ops": {"LATENT_DIM": 8, "WIDTH": 16, "BATCH_SIZE": 32},
    "dcgan_fuse": {"batch_size": 16, "nz": 16, "ngf": 8, "ndf": 8, "lr": 2e-3},
    "wgan_gp": {"WIDTH": 16, "BATCH_SIZE": 32},
    "pix2pix_unet": {"WIDTH": 8, "BATCH_SIZE": 16},
}


def test_every_program_is_tested() -> None:
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.py")) == sorted(SMALL)


@pytest.mark.parametrize(("name", "image_size"), [("fused_ops", 16), ("dcgan_fuse", 32), ("wgan_gp", 16)])
def test_untrained_samples_do_not_look_like_digits(name: str, image_size: int, tmp_path: Path) -> None:
    assert_finite(load_program(name, **SMALL[name]).main(1, tmp_path), rows=1)
    assert similarity(tiles(tmp_path / "samples.png", 8, image_size)) < 0.2


def test_fused_ops_example_learns(tmp_path: Path) -> None:
    history = load_program("fused_ops", **SMALL["fused_ops"]).main(120, tmp_path)
    assert_finite(history, rows=9)
    d_losses, _ = zip(*history)
    assert d_losses[-1] < 0.95 * d_losses[0]
    assert similarity(tiles(tmp_path / "samples.png", 8, 16)) > LEARNED_SIMILARITY


def test_dcgan_example_learns_and_prints_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fused_models: list[str]
) -> None:
    history = load_program("dcgan_fuse", **SMALL["dcgan_fuse"]).main(64, tmp_path)
    assert_finite(history, rows=9)
    d_losses, _ = zip(*history)
    assert min(d_losses) < 0.6 * d_losses[0]
    assert similarity(tiles(tmp_path / "samples.png", 8, 32)) > LEARNED_SIMILARITY
    assert fused_models == ["Generator", "Discriminator"]
    printed = capsys.readouterr().out
    assert printed.count("4 fused, 0 skipped") == 2
    assert re.search(r"one step: eager \d+\.\d ms, fused \d+\.\d ms, eager / fused \d+\.\d\d$", printed.strip())


def test_wgan_gp_example_learns(tmp_path: Path) -> None:
    history = load_program("wgan_gp", **SMALL["wgan_gp"]).main(24, tmp_path)
    assert_finite(history, rows=9)
    distances, penalties = zip(*history)
    # The critic reaches a slope of about one; then the generator reduces the distance.
    assert penalties[-1] < 0.3 * penalties[0]
    assert distances[-1] < 0.9 * max(distances)
    assert similarity(tiles(tmp_path / "samples.png", 8, 16)) > LEARNED_SIMILARITY


def test_wgan_gp_gives_the_same_numbers_without_fuse(tmp_path: Path, fused_models: list[str]) -> None:
    wgan_gp = load_program("wgan_gp", **SMALL["wgan_gp"])
    eager = wgan_gp.main(3, tmp_path, fuse=False)
    assert fused_models == []
    assert np.allclose(wgan_gp.main(3, tmp_path), eager, rtol=1e-3)
    assert fused_models == ["Sequential", "Sequential"]


def test_pix2pix_example_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str], fused_models: list[str]) -> None:
    history = load_program("pix2pix_unet", **SMALL["pix2pix_unet"]).main(80, tmp_path)
    assert_finite(history, rows=9)
    d_losses, _, l1s = zip(*history)
    assert d_losses[-1] < 0.98 * d_losses[0]
    assert l1s[-1] < 0.5 * l1s[0]
    hidden, filled, original = tiles(tmp_path / "samples.png", 9, 32).reshape(27, 3, 32, 32).swapaxes(0, 1)
    gray = hidden == 128
    assert np.abs(filled - original)[gray].mean() < 0.8 * np.abs(hidden - original)[gray].mean()
    assert fused_models == ["UNet", "PatchDiscriminator"]
    printed = capsys.readouterr().out
    assert "6 fused, 0 skipped" in printed
    assert "3 fused, 0 skipped" in printed


@pytest.mark.parametrize("name", SMALL)
def test_program_runs_from_the_command_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(ROOT / "examples" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, "--steps", "2", "--out", str(tmp_path / "run")])
    runpy.run_path(path, run_name="__main__")
    with Image.open(tmp_path / "run" / "samples.png") as image:
        image.verify()


def test_program_runs_in_a_new_process(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "fused_ops.py"), "--steps", "2", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "step     2: D loss" in done.stdout
    assert tiles(tmp_path / "run" / "samples.png", 8, 16).std() > 0
