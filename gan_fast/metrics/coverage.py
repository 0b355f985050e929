"""Which classes of a labelled data set a generator reaches, as a classifier of the real images sees it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Enough for a linear classifier of digits or textures, and quick whatever the images' size.
_MAX_SIDE = 16
_MAX_IMAGES = 20_000
_HELD_OUT = 0.2


@dataclass(frozen=True)
class Coverage:
    """How generated images fall into classes; `str()` of it is a line for each class.

    Attributes:
        fractions: class name -> fraction of the generated images that the classifier puts there.
        least_class_fraction: the smallest of them; 0 where a class is missing.
        mean_top_probability: mean over the generated images of the largest class probability.
        real_mean_top_probability: the same over the held-out real images: what perfect samples would have.
        classifier_accuracy: on the held-out real images.
        samples: number of generated images.
    """

    fractions: dict[str, float]
    least_class_fraction: float
    mean_top_probability: float
    real_mean_top_probability: float
    classifier_accuracy: float
    samples: int

    def __str__(self) -> str:
        width = max(map(len, self.fractions))
        lines = [
            f"class coverage of {self.samples} samples: least class {self.least_class_fraction:.1%}, "
            f"mean top probability {self.mean_top_probability:.3f} (real images: {self.real_mean_top_probability:.3f}; "
            f"classifier accuracy {self.classifier_accuracy:.1%})"
        ]
        most = max(self.fractions.values()) or 1.0
        for name, fraction in self.fractions.items():
            lines.append(f"  {name:<{width}}  {fraction:6.1%}  {'#' * round(30 * fraction / most)}")
        return "\n".join(lines)


def class_coverage(real: Tensor, labels: Tensor, samples: Tensor, class_names: Sequence[str]) -> Coverage:
    """Classify generated images with a logistic regression trained on the real ones.

    Args:
        real: uint8 (N, C, H, W).
        labels: int64 (N,), indices into `class_names`; -1 for an image of no class, which is left out.
        samples: float (M, C, H, W) in [-1, 1], M >= 1.
        class_names: one name for each class, at least two of them among the labels.

    Returns:
        The coverage.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: shapes do not match, or fewer than two classes have images.

    Notes:
        How good the classifier is shows on a fifth of the real images that is held out; the one that looks at the
        samples is then trained on all of them. Images are averaged down to at most 16 x 16 pixels, and at most 20,000
        real ones are used. Deterministic.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    if real.shape[1:] != samples.shape[1:] or len(real) != len(labels) or not len(samples):
        raise ValueError(
            f"class_coverage: expected samples shape (M, {', '.join(map(str, real.shape[1:]))}) and {len(real)} "
            f"labels, got {tuple(samples.shape)} and {len(labels)}"
        )
    labelled = torch.nonzero(labels >= 0).flatten()
    order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(0))[:_MAX_IMAGES]
    chosen = labelled[order]
    if len(labels[chosen].unique()) < 2:
        raise ValueError("class_coverage: expected labels of at least 2 classes, got fewer")
    x, y = _features(real[chosen].float() / 127.5 - 1), labels[chosen].numpy()
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=_HELD_OUT, random_state=0)
    with warnings.catch_warnings():
        # Short of convergence it classifies as well; how well is reported.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = LogisticRegression(max_iter=1000).fit(x_train, y_train)
        final = LogisticRegression(max_iter=1000).fit(x, y)
    held_out = classifier.predict_proba(x_test)
    generated = final.predict_proba(_features(samples.float().cpu()))
    predicted = final.classes_[generated.argmax(1)]
    fractions = {name: float((predicted == index).mean()) for index, name in enumerate(class_names)}
    return Coverage(
        fractions=fractions,
        least_class_fraction=min(fractions.values()),
        mean_top_probability=float(generated.max(1).mean()),
        real_mean_top_probability=float(held_out.max(1).mean()),
        classifier_accuracy=float((classifier.classes_[held_out.argmax(1)] == y_test).mean()),
        samples=len(samples),
    )


def _features(images: Tensor) -> np.ndarray:
    """Average down and flatten images to (N, features)."""
    height, width = (min(_MAX_SIDE, side) for side in images.shape[-2:])
    return torch.nn.functional.adaptive_avg_pool2d(images, (height, width)).flatten(1).numpy()
