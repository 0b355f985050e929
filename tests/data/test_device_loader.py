"""DeviceLoader: each epoch is a permutation, and each batch depends only on seed and step."""

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
    """Return images that contain their index in two bytes."""
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
    order = [index for step in range(3 * count) for index in indices(loader.batch(step))]
    epochs = [order[start : start + count] for start in range(0, len(order), count)]
    assert len(epochs) == 3 * batch_size  # no image is dropped, and no batch is short
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)


@settings(max_examples=40)
@given(sizes, seeds, st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_batch_depends_only_on_seed_and_step(size, seed, steps):
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
def test_resumed_batches_equal_uninterrupted_ones(stop):
    whole = DeviceLoader(numbered(37), 8, seed=3)
    first, second = DeviceLoader(numbered(37), 8, seed=3), DeviceLoader(numbered(37), 8, seed=3)
    resumed = [first.batch(step) for step in range(stop)] + [second.batch(step) for step in range(stop, 25)]
    assert all(torch.equal(whole.batch(step), batch) for step, batch in enumerate(resumed))


def test_global_generator_does_not_change():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    DeviceLoader(numbered(9), 4).batch(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_order_differs_between_epochs_and_seeds():
    def epoch_order(seed, epoch):
        return tuple(indices(DeviceLoader(numbered(30), 30, seed=seed).batch(epoch)))

    orders = {epoch_order(seed, epoch) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64  # seed + epoch would leave 15


def test_each_place_in_an_epoch_is_equally_likely():
    # The place of image 0 in 4000 epochs of 8 images: 500 in each place expected, with standard deviation 21.
    loader = DeviceLoader(numbered(8), 8)
    places = np.bincount([indices(loader.batch(epoch)).index(0) for epoch in range(4000)], minlength=8)
    assert np.abs(places - 500).max() < 5 * 21


def test_batch_is_float32_and_scaled_to_minus_one_to_one():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    batch = DeviceLoader(images, 1).batch(0)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, images.float() / 127.5 - 1)
    assert (batch.min(), batch.max()) == (-1, 1)


def test_changing_a_batch_in_place_does_not_change_the_images():
    loader = DeviceLoader(numbered(4), 4)
    want = loader.batch(0).clone()
    loader.batch(0).zero_()
    assert torch.equal(loader.batch(0), want)


def test_images_on_the_device_are_not_copied():
    images = numbered(4)
    assert DeviceLoader(images, 2).images.data_ptr() == images.data_ptr()


def test_deleted_loader_frees_its_images_at_once():
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
def test_every_image_is_used_in_steps_per_epoch(count, batch_size, steps):
    loader = DeviceLoader(numbered(count), batch_size)
    assert loader.steps_per_epoch == steps
    assert {index for step in range(steps) for index in indices(loader.batch(step))} == set(range(count))


def test_each_permutation_is_drawn_once(monkeypatch):
    draws = []
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **options: draws.append(1) or randperm(*args, **options))
    loader = DeviceLoader(numbered(10), 4)
    for step in range(10):  # four epochs; a batch may need two of them
        loader.batch(step)
        loader.batch(step)
    assert len(draws) == 4


BAD = [
    ({"images_uint8": np.zeros((4, 1, 2, 2), np.uint8)}, TypeError, "images_uint8 type torch.Tensor, got ndarray"),
    ({"images_uint8": torch.zeros(4, 1, 2, 2)}, TypeError, "images_uint8 dtype torch.uint8, with values from 0"),
    (
        {"images_uint8": torch.zeros(4, 2, 2, dtype=torch.uint8)},
        ValueError,
        "images_uint8 shape (N, C, H, W), got (4, 2, 2)",
    ),
    ({"batch_size": 0}, ValueError, "batch_size at least 1, got 0"),
    ({"batch_size": 2.0}, TypeError, "batch_size type int, got float"),
    ({"batch_size": 5}, ValueError, "at least batch_size = 5 images, got 4; lower batch_size or add images"),
    ({"images_uint8": numbered(0)}, ValueError, "at least batch_size = 2 images, got 0"),
    ({"seed": -1}, ValueError, "seed at least 0, got -1"),
    ({"seed": None}, TypeError, "seed type int, got NoneType"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=f"^DeviceLoader: expected {re.escape(message)}"):
        DeviceLoader(**{"images_uint8": numbered(4), "batch_size": 2, **arguments})


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_bad_step_is_refused(step, error):
    with pytest.raises(error, match=r"^DeviceLoader\.batch: expected step"):
        DeviceLoader(numbered(4), 2).batch(step)


@pytest.mark.gpu
def test_cuda_batches_equal_cpu_batches_without_synchronizing():
    images = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    on_cpu, on_gpu = DeviceLoader(images, 8, seed=5), DeviceLoader(images, 8, seed=5, device="cuda")
    on_gpu.batch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [on_gpu.batch(step) for step in range(30)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(batch.cpu(), on_cpu.batch(step)) for step, batch in enumerate(batches))
