"""Measuring the fastest number of threads does not change the training."""

import pytest
import torch
from data.image_bytes import encode, picture, write_folder

from gan_fast.train import run as run_module
from gan_fast.train.config import TrainConfig
from gan_fast.train.process import ThreadChoice
from gan_fast.train.run import Run, RunConfig


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    data = write_folder(tmp_path / "data", {f"{i}.png": encode(picture(16, 16, seed=i)) for i in range(4)})
    steps_timed = []

    def time_three_steps(step):
        steps_timed.append([step() for _ in range(3)])
        return ThreadChoice(1, {1: 2.0, 2: 3.0})

    monkeypatch.setattr(run_module, "fastest_threads", time_three_steps)

    def make(name, steps=200, **options):
        lines = []
        config = TrainConfig(steps=steps, batch_size=2, latent_dim=4, device="cpu", regularizers=("spectral_norm",))
        run = Run(RunConfig(str(data), tmp_path / name, config, image_size=16, width=4), say=lines.append, **options)
        return run, lines, steps_timed

    return make


def test_measured_run_trains_the_same_weights(make_run):
    plain, lines, steps_timed = make_run("plain")
    assert not steps_timed
    measured, lines, steps_timed = make_run("measured", measure_threads=True)
    assert len(steps_timed) == 1
    assert "CPU threads: 1 (2 ms per step; 3 ms with 2); set --threads to skip this measurement" in lines
    states = []
    for run in (plain, measured):
        run.trainer.step(run.images.images[:2].float() / 127.5 - 1)
        states.append(run.trainer.state_dict())
    for name in ("generator", "discriminator", "ema_generator"):
        for key, value in states[0][name].items():
            assert torch.equal(value, states[1][name][key])
    assert torch.equal(states[0]["latent_rng"], states[1]["latent_rng"])
    assert torch.equal(states[0]["torch_rng"], states[1]["torch_rng"])


def test_short_and_resumed_runs_are_not_measured(make_run):
    _, _, steps_timed = make_run("short", steps=199, measure_threads=True)
    make_run("long")
    make_run("long", measure_threads=True, resume=True)
    assert not steps_timed
