"""Class coverage at the end of a run; an error in it does not make the run fail."""

import json

import pytest
import torch
from data.image_bytes import encode, picture, write_folder

from gan_fast.train import run as run_module
from gan_fast.train.config import TrainConfig
from gan_fast.train.run import Run, RunConfig


@pytest.fixture
def classes(tmp_path):
    """Three classes, with three, two and one images."""
    names = ("a/1", "a/2", "a/3", "b/1", "b/2", "c/1")
    return write_folder(tmp_path / "data", {f"{n}.png": encode(picture(16, 16, seed=i)) for i, n in enumerate(names)})


def train(classes, **options):
    lines = []
    config = TrainConfig(steps=1, batch_size=2, latent_dim=4, device="cpu")
    out = classes.parent / "run"
    run = Run(RunConfig(str(classes), out, config, image_size=16, width=4, **options), say=lines.append)
    assert run.train() is None
    assert (out / "generator_ema.safetensors").exists()
    return out / "class_coverage.json", "\n".join(lines)


def test_coverage_of_classes_of_unequal_size(classes):
    path, lines = train(classes)
    record = json.loads(path.read_text(), parse_constant=pytest.fail)  # JSON has no NaN
    assert list(record["fractions"]) == ["a", "b", "c"]
    assert "class coverage of 1000 samples" in lines
    assert "mean little" in lines
    assert record["reliable"] is False


def test_coverage_can_be_switched_off(classes):
    path, lines = train(classes, class_coverage=False)
    assert not path.exists()
    assert "class coverage" not in lines


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "class coverage was skipped; the training is finished and saved"),
        (MemoryError(), "class coverage cannot be measured: MemoryError; the training is finished"),
        (RuntimeError("out of memory\nsecond line"), "class coverage cannot be measured: out of memory; the training"),
    ],
)
def test_error_is_reported_in_one_line(classes, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(run_module, "class_coverage", fail)
    path, lines = train(classes)
    assert not path.exists()
    assert said in lines
    assert "second line" not in lines


def test_samples_that_are_not_finite_are_reported(classes, monkeypatch):
    monkeypatch.setattr(
        run_module.Run,
        "_save_samples",
        lambda run: setattr(run.trainer, "sample", lambda n, **_: torch.full((n, 3, 16, 16), torch.nan)),
    )
    path, lines = train(classes)
    assert not path.exists()
    assert "class coverage cannot be measured: class_coverage: expected samples finite" in lines
