"""The sampler: every epoch a permutation, every batch a pure function of seed and step."""

import gc
import re
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_fast.data import DeviceLoader


def numbered(count):
    """Images that say which they are: the index in two bytes."""
    index = torch.arange(count)
    return torch.stack((index // 256, index % 256), 1).to(torch.uint8).view(count, 2, 1, 1)


def indices(batch):
    high, low = ((batch.flatten(1) + 1) * 127.5).round().long().unbind(1)
    return (high * 256 + low).tolist()


sizes = st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count)))
seeds = st.integers(0, 2**70)


@settings(max_examples=40)
@given(sizes, seeds)
def test_every_epoch_is_a_permutation(size, seed):
    count, batch_size = size
    loader = DeviceLoader(numbered(count), batch_size, seed=seed)
    served = [index for step in range(3 * count) for index in indices(loader.batch(step))]
    epochs = [served[start : start + count] for start in range(0, len(served), count)]
    assert len(epochs) == 3 * batch_size  # nothing dropped, no short batch
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)


@settings(max_examples=40)
@given(sizes, seeds, st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_a_batch_depends_on_seed_and_step_only(size, seed, steps):
    count, batch_size = size
    loader = DeviceLoader(numbered(count), batch_size, seed=seed)
    forwards = {step: loader.batch(step) for step in sorted(steps)}
    backwards = {step: loader.batch(step) for step in sorted(steps, reverse=True)}
    torch.manual_seed(0)
    for step in steps:
        fresh = DeviceLoader(numbered(count), batch_size, seed=seed).batch(step)
        assert torch.equal(fresh, forwards[step])
        assert torch.equal(fresh, backwards[step])


@pytest.mark.parametrize("stop", [0, 1, 7, 24])
def test_resume_equals_one_run(stop):
    whole = DeviceLoader(numbered(37), 8, seed=3)
    first, second = DeviceLoader(numbered(37), 8, seed=3), DeviceLoader(numbered(37), 8, seed=3)
    resumed = [first.batch(step) for step in range(stop)] + [second.batch(step) for step in range(stop, 25)]
    assert all(torch.equal(whole.batch(step), batch) for step, batch in enumerate(resumed))


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    DeviceLoader(numbered(9), 4).batch(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_and_seeds_differ():
    def epoch_order(seed, epoch):
        return tuple(indices(DeviceLoader(numbered(30), 30, seed=seed).batch(epoch)))

    orders = {epoch_order(seed, epoch) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64  # seed + epoch would leave 15


def test_shuffle_is_uniform_enough():
    # Where image 0 lands over 4000 epochs of 8: 500 expected in each place, standard deviation 21.
    loader = DeviceLoader(numbered(8), 8)
    places = np.bincount([indices(loader.batch(epoch)).index(0) for epoch in range(4000)], minlength=8)
    assert np.abs(places - 500).max() < 5 * 21


def test_values_and_type():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    batch = DeviceLoader(images, 1).batch(0)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, images.float() / 127.5 - 1)
    assert (batch.min(), batch.max()) == (-1, 1)


def test_a_batch_may_be_changed_in_place():
    loader = DeviceLoader(numbered(4), 4)
    want = loader.batch(0).clone()
    loader.batch(0).zero_()
    assert torch.equal(loader.batch(0), want)


def test_images_already_there_are_not_copied():
    images = numbered(4)
    assert DeviceLoader(images, 2).images.data_ptr() == images.data_ptr()


def test_a_dropped_loader_frees_its_images_at_once():
    images = numbered(4)
    alive = weakref.ref(images)
    gc.disable()
    try:
        loader = DeviceLoader(images, 2)
        loader.batch(0)
        del images, loader
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(10, 5, 2), (10, 4, 3), (10, 10, 1), (10, 6, 2)])
def test_steps_per_epoch(count, batch_size, steps):
    loader = DeviceLoader(numbered(count), batch_size)
    assert loader.steps_per_epoch == steps
    assert {index for step in range(steps) for index in indices(loader.batch(step))} == set(range(count))


def test_each_permutation_is_made_once(monkeypatch):
    made = []
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **options: made.append(1) or randperm(*args, **options))
    loader = DeviceLoader(numbered(10), 4)
    for step in range(10):  # four epochs; every step twice, as step 2 needs the end of one and the start of the next
        loader.batch(step)
        loader.batch(step)
    assert len(made) == 4


BAD = [
    ({"images_uint8": np.zeros((4, 1, 2, 2), np.uint8)}, TypeError, "expected images type torch.Tensor, got ndarray"),
    ({"images_uint8": torch.zeros(4, 1, 2, 2)}, TypeError, "expected images dtype torch.uint8, got torch.float32"),
    (
        {"images_uint8": torch.zeros(4, 2, 2, dtype=torch.uint8)},
        ValueError,
        "expected images shape (N, C, H, W), got (4, 2, 2)",
    ),
    ({"batch_size": 0}, ValueError, "expected batch_size >= 1, got 0"),
    ({"batch_size": 2.0}, TypeError, "expected batch_size type int, got float"),
    ({"batch_size": 5}, ValueError, "expected at least batch_size = 5 images, got 4; lower batch_size or add images"),
    ({"images_uint8": numbered(0)}, ValueError, "expected at least batch_size = 2 images, got 0"),
    ({"seed": -1}, ValueError, "expected seed >= 0, got -1"),
    ({"seed": None}, TypeError, "expected seed type int, got NoneType"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_argument(arguments, error, message):
    with pytest.raises(error, match=f"^DeviceLoader: {re.escape(message)}"):
        DeviceLoader(**{"images_uint8": numbered(4), "batch_size": 2, **arguments})


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_bad_step(step, error):
    with pytest.raises(error, match=r"^DeviceLoader\.batch: expected step"):
        DeviceLoader(numbered(4), 2).batch(step)


@pytest.mark.gpu
def test_cuda_gives_the_same_batches_without_synchronising():
    images = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    on_cpu, on_gpu = DeviceLoader(images, 8, seed=5), DeviceLoader(images, 8, seed=5, device="cuda")
    on_gpu.batch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [on_gpu.batch(step) for step in range(30)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(batch.cpu(), on_cpu.batch(step)) for step, batch in enumerate(batches))
