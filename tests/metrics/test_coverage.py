"""Class coverage on images whose classes are known."""

import pytest
import torch

from gan_fast.data import load_images
from gan_fast.metrics import class_coverage


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", image_size=8)


def as_samples(images):
    return images.float() / 127.5 - 1


def test_real_images_are_covered_as_they_are_labelled(digits):
    coverage = class_coverage(digits.images, digits.labels, as_samples(digits.images), digits.class_names)
    assert list(coverage.fractions) == list(digits.class_names)
    assert sum(coverage.fractions.values()) == pytest.approx(1)
    assert coverage.least_class_fraction > 0.09
    assert coverage.classifier_accuracy > 0.93
    assert coverage.mean_top_probability > 0.93
    assert coverage.samples == 1797


def test_collapse_shows_as_a_class_at_zero(digits):
    threes = as_samples(digits.images[digits.labels == 3])
    coverage = class_coverage(digits.images, digits.labels, threes, digits.class_names)
    assert coverage.fractions["3"] > 0.95
    assert coverage.least_class_fraction == 0


def test_noise_shows_as_low_probability(digits):
    grey = torch.zeros(100, 1, 8, 8)
    coverage = class_coverage(digits.images, digits.labels, grey, digits.class_names)
    assert coverage.mean_top_probability < coverage.real_mean_top_probability - 0.1


def test_images_without_a_class_are_left_out(digits):
    spoilt = digits.images.clone()
    labels = digits.labels.clone()
    spoilt[::2], labels[::2] = 0, -1
    # Samples like those images must still go to a class that has a name.
    coverage = class_coverage(spoilt, labels, as_samples(spoilt), digits.class_names)
    assert sum(coverage.fractions.values()) == pytest.approx(1)
    assert coverage.classifier_accuracy > 0.9


def test_large_colour_images_are_averaged_down():
    dark, light = (
        torch.full((40, 3, 48, 40), 30, dtype=torch.uint8),
        torch.full((40, 3, 48, 40), 220, dtype=torch.uint8),
    )
    images, labels = torch.cat((dark, light)), torch.arange(80) // 40
    coverage = class_coverage(images, labels, as_samples(light), ("dark", "light"))
    assert coverage.fractions == {"dark": 0.0, "light": 1.0}


@pytest.mark.parametrize(
    ("labels", "samples", "message"),
    [
        (torch.zeros(1797, dtype=torch.int64), torch.zeros(2, 1, 8, 8), "at least 2 classes"),
        (None, torch.zeros(2, 3, 8, 8), r"samples shape \(M, 1, 8, 8\)"),
        (None, torch.zeros(0, 1, 8, 8), r"samples shape"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(2, 1, 8, 8), "1797 labels, got"),
    ],
)
def test_bad_arguments_are_named(digits, labels, samples, message):
    with pytest.raises(ValueError, match=message):
        class_coverage(digits.images, digits.labels if labels is None else labels, samples, digits.class_names)
