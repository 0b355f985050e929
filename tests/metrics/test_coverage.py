"""Class coverage of images whose classes are known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from gan_fast.data import load_images
from gan_fast.metrics import class_coverage, coverage


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", image_size=8)


def as_samples(images):
    return images.float() / 127.5 - 1


def test_real_images_cover_all_classes(digits):
    found = class_coverage(digits.images, digits.labels, as_samples(digits.images), digits.class_names)
    assert list(found.fractions) == list(digits.class_names)
    assert sum(found.fractions.values()) == pytest.approx(1)
    assert found.least_class_fraction > 0.09
    assert found.classifier_accuracy > 0.93
    assert found.mean_top_probability > 0.93
    assert found.samples == 1797


def test_samples_of_one_class_leave_the_others_at_zero(digits):
    threes = as_samples(digits.images[digits.labels == 3])
    found = class_coverage(digits.images, digits.labels, threes, digits.class_names)
    assert found.fractions["3"] > 0.95
    assert found.least_class_fraction == 0


def test_blank_images_have_a_low_probability(digits):
    gray = torch.zeros(100, 1, 8, 8)
    found = class_coverage(digits.images, digits.labels, gray, digits.class_names)
    assert found.mean_top_probability < found.real_mean_top_probability - 0.1


def test_images_without_a_class_are_left_out(digits):
    images = digits.images.clone()
    labels = digits.labels.clone()
    images[::2], labels[::2] = 0, -1
    # Samples that look like the left-out images must still be assigned to a named class.
    found = class_coverage(images, labels, as_samples(images), digits.class_names)
    assert sum(found.fractions.values()) == pytest.approx(1)
    assert found.classifier_accuracy > 0.9


def test_large_color_images_are_classified():
    dark, light = (
        torch.full((40, 3, 48, 40), 30, dtype=torch.uint8),
        torch.full((40, 3, 48, 40), 220, dtype=torch.uint8),
    )
    images, labels = torch.cat((dark, light)), torch.arange(80) // 40
    found = class_coverage(images, labels, as_samples(light), ("dark", "light"))
    assert found.fractions == {"dark": 0.0, "light": 1.0}


def test_classifier_equals_the_logistic_regression_of_scikit_learn(digits):
    x, y = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 12))).float(), torch.arange(300) % 3
    x[y == 1] += 0.7
    weight, bias = coverage._fit(x, y, 3, 500, None)
    expected = LogisticRegression(max_iter=1000, tol=1e-8).fit(x.numpy(), y.numpy()).predict_proba(x.numpy())
    assert torch.softmax(x @ weight.T + bias, 1).numpy() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("sizes", [(1, 200), (2, 200), (1, 1), (4, 5), (300, 0, 7)], ids=str)
def test_classes_of_any_size_are_measured(sizes):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    images = (20 + 80 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    found = class_coverage(images, labels, as_samples(images), "abc"[: len(sizes)])
    # No sample can be assigned to a class without images.
    present = [i for i, size in enumerate(sizes) if size]
    assert list(found.fractions) == ["abc"[i] for i in present]
    if min(size for size in sizes if size) > 1:
        assert found.fractions == pytest.approx({"abc"[i]: sizes[i] / sum(sizes) for i in present}, abs=0.01)
    assert str(found)


def test_poor_classifier_is_reported_as_unreliable(digits):
    shuffled = digits.labels[torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(0))]
    poor = class_coverage(digits.images, shuffled, as_samples(digits.images), digits.class_names)
    good = class_coverage(digits.images, digits.labels, as_samples(digits.images), digits.class_names)
    assert poor.classifier_accuracy < 0.2
    assert (poor.reliable, good.reliable) == (False, True)
    assert poor.chance == pytest.approx(0.1, abs=0.01)
    assert "mean little" in str(poor)
    assert "mean little" not in str(good)


def test_work_is_limited_for_any_number_of_classes_and_images(monkeypatch):
    fits = []

    def fit(x, y, classes, iterations, on_progress):
        fits.append(4 * x.numel() * classes * iterations)
        return torch.zeros(classes, x.shape[1]), torch.zeros(classes)

    monkeypatch.setattr(coverage, "_fit", fit)
    real = torch.zeros(1, 3, 16, 16, dtype=torch.uint8).expand(50_000, -1, -1, -1)
    for classes in (2, 100, 1000):
        labels = torch.arange(50_000) % classes
        found = class_coverage(real, labels, torch.zeros(10, 3, 16, 16), list(map(str, range(classes))))
        assert str(found).count("\n") <= 22
    assert max(fits) <= coverage._MAX_FLOP


def test_progress_increases_to_at_most_one(digits):
    shares = []
    class_coverage(
        digits.images, digits.labels, as_samples(digits.images), digits.class_names, on_progress=shares.append
    )
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


@pytest.mark.parametrize(
    ("labels", "samples", "message"),
    [
        (torch.zeros(1797, dtype=torch.int64), torch.zeros(2, 1, 8, 8), "at least 2 classes"),
        (None, torch.full((2, 1, 8, 8), float("nan")), "samples finite, got NaN"),
        (None, torch.zeros(2, 3, 8, 8), r"samples shape \(M, 1, 8, 8\)"),
        (None, torch.zeros(0, 1, 8, 8), r"samples shape"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(2, 1, 8, 8), "1797 labels, got"),
    ],
)
def test_bad_argument_is_refused(digits, labels, samples, message):
    with pytest.raises(ValueError, match=message):
        class_coverage(digits.images, digits.labels if labels is None else labels, samples, digits.class_names)


def test_classes_too_small_to_hold_out_are_reported_without_nan():
    images = torch.randint(0, 255, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = class_coverage(images, torch.arange(8) % 2, as_samples(images), ["a", "b"])
    assert not found.reliable
    assert "(no real images held out)" in str(found)
    assert "no class has the 5 real images from which one could be held out" in str(found)
    assert "nan" not in str(found)
