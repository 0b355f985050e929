"""gan_fast.load rebuilds a trained generator and draws samples from it."""

import pytest
import torch

import gan_fast
from gan_fast.models import DCGANGenerator
from gan_fast.train.checkpoint import CheckpointError, save_generator
from gan_fast.train.loop import draw_latents, generate

MODEL = {"latent_dim": 4, "channels": 1, "image_size": 16, "width": 2}


@pytest.fixture
def run(tmp_path):
    """A folder with an averaged and a last generator."""
    for name in ("generator_ema", "generator"):
        save_generator(tmp_path / f"{name}.safetensors", DCGANGenerator(**MODEL), MODEL)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_samples_are_images_of_the_averaged_generator(run):
    trained = gan_fast.load(run)
    assert trained.path == run / "generator_ema.safetensors"
    images = trained.sample(5, seed=3)
    assert images.shape == (5, 1, 16, 16)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert images.abs().max() <= 1
    assert torch.equal(images, generate(trained.generator, draw_latents(5, 4, 3)))
    assert torch.equal(images, gan_fast.load(str(run), device="cpu").sample(5, seed=3))
    assert not torch.equal(images, trained.sample(5, seed=4))
    assert not trained.generator.training
    with torch.autocast("cpu", torch.bfloat16):
        assert trained.sample(1).dtype == torch.float32


def test_repr_gives_the_sizes_and_the_path(run):
    path = run / "generator_ema.safetensors"
    want = f"TrainedGenerator(image_size=16, channels=1, latent_dim=4, path={str(path)!r})"
    assert repr(gan_fast.load(run)) == want


def test_last_generator_and_file_can_be_loaded(run):
    last = gan_fast.load(run, ema=False).sample(2)
    assert torch.equal(last, gan_fast.load(run / "generator.safetensors").sample(2))
    assert not torch.equal(last, gan_fast.load(run).sample(2))


def test_truncation_scales_the_latents(run):
    trained = gan_fast.load(run)
    assert torch.equal(trained.sample(3, truncation=0.5), generate(trained.generator, draw_latents(3, 4, 0) / 2))
    center = trained.sample(3, truncation=0.0)
    assert torch.equal(center[0], center[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "sample: expected n at least 1, got 0"),
        ({"n": 2.0}, TypeError, "sample: expected n type int, got float"),
        ({"n": 1, "seed": -1}, ValueError, "sample: expected seed at least 0"),
        ({"n": 1, "seed": True}, TypeError, "sample: expected seed type int, got bool"),
        ({"n": 1, "truncation": float("nan")}, ValueError, "sample: expected truncation a finite number, got nan"),
        ({"n": 1, "truncation": "0.5"}, TypeError, "sample: expected truncation type float, got str"),
        ({"n": 1, "label": 3}, ValueError, "expected label None, because this generator has no classes, got 3"),
    ],
)
def test_wrong_argument_of_sample_is_named(run, arguments, error, message):
    with pytest.raises(error, match=message):
        gan_fast.load(run).sample(**arguments)


def test_run_without_a_generator_is_an_error(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("text")
    (tmp_path / "checkpoint.pt").write_text("text")
    (tmp_path / "generator_ema.safetensors").unlink()
    for name, message in {
        "nowhere": "nowhere, which does not exist",
        "empty": r"got the folder .*empty without generator_ema\.safetensors; it holds no run",
        ".": "without generator_ema.safetensors; the run has not saved a checkpoint yet",
        "text": "text, a file of another kind",
        "checkpoint.pt": r"checkpoint\.pt, a training checkpoint; give its folder instead",
    }.items():
        with pytest.raises(ValueError, match=rf"^load: expected run to be the folder of a run or .*{message}$"):
            gan_fast.load(tmp_path / name)
    with pytest.raises(TypeError, match=r"^load: expected run type str or Path, got int$"):
        gan_fast.load(3)


@pytest.mark.parametrize("device", ["gpu", "meta", None])
def test_unavailable_device_is_an_error(run, device):
    with pytest.raises(ValueError, match=f"^load: expected device one of cpu.*, got {device!r}"):
        gan_fast.load(run, device=device)


def test_damaged_generator_is_an_error(run):
    path = run / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        gan_fast.load(path)
