"""Measure how generated images are distributed over the classes of a labeled data set.

>>> import torch
>>> from gan_fast.metrics import class_coverage
>>> brightness = torch.tensor([30] * 40 + [220] * 40, dtype=torch.uint8)
>>> images, labels = brightness.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), torch.arange(80) // 40
>>> samples = torch.full((10, 1, 8, 8), 0.7)  # in a training: trainer.sample(1000)
>>> class_coverage(images, labels, samples, ("dark", "light")).fractions
{'dark': 0.0, 'light': 1.0}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels. Enough for a linear classifier of digits or textures, and fast for images of any size.
_MAX_SIDE = 16
_MAX_IMAGES = 20_000
_HELD_OUT_FRACTION = 0.2
# Floating point operations of the whole fit: about 3 s at 150 GFLOP/s.
_MAX_FLOP = 4e11
_MAX_ITERATIONS = 200
_MIN_ITERATIONS = 50
# Images that are converted to float at a time.
_CHUNK_IMAGES = 1024
# Below this accuracy on real images, the classes that it gives to generated images mean little.
_MIN_ACCURACY = 0.7
_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Coverage:
    """How generated images are distributed over classes. ``str()`` of it has a line for each class.

    Attributes:
        fractions: fraction of the generated images in each class, by class name, according to the classifier. Classes
            without a real image are left out.
        least_class_fraction: the smallest of them; 0 if a class has no generated image.
        mean_top_probability: largest class probability of an image, averaged over the generated images.
        real_mean_top_probability: the same for the held-out real images, which perfect samples would reach.
        classifier_accuracy: on the held-out real images; NaN if none could be held out.
        chance: the accuracy of a classifier that always answers the largest class.
        reliable: whether the accuracy is at least 70 %, so that the fractions mean something.
        samples: number of generated images.
    """

    fractions: dict[str, float]
    least_class_fraction: float
    mean_top_probability: float
    real_mean_top_probability: float
    classifier_accuracy: float
    chance: float
    reliable: bool
    samples: int

    def __str__(self) -> str:
        width = max(map(len, self.fractions))
        measured = not math.isnan(self.classifier_accuracy)
        real = f"real images: {self.real_mean_top_probability:.3f}; classifier accuracy {self.classifier_accuracy:.1%}"
        lines = [
            f"class coverage of {self.samples} samples: rarest class {self.least_class_fraction:.1%}, "
            f"mean top probability {self.mean_top_probability:.3f} ({real if measured else 'no real images held out'})"
        ]
        if not measured:
            lines.append(
                "  These figures mean little: the classifier's accuracy is unknown, as no class has the 5 real images "
                "from which one could be held out."
            )
        elif not self.reliable:
            lines.append(
                f"  These figures mean little: the classifier recognizes {self.classifier_accuracy:.1%} of the real "
                f"images that it was not trained on (always answering the largest class: {self.chance:.1%})."
            )
        shown = sorted(self.fractions.items(), key=lambda item: item[1])[:_SHOWN_CLASSES]
        if len(shown) < len(self.fractions):
            empty = sum(fraction == 0 for fraction in self.fractions.values())
            lines.append(
                f"  {empty} of {len(self.fractions)} classes have no sample; the {len(shown)} with the fewest:"
            )
        else:
            shown = list(self.fractions.items())
        most = max(self.fractions.values()) or 1.0
        for name, fraction in shown:
            lines.append(f"  {name:<{width}}  {fraction:6.1%}  {'#' * round(30 * fraction / most)}".rstrip())
        return "\n".join(lines)


def class_coverage(
    real: Tensor,
    labels: Tensor,
    samples: Tensor,
    class_names: Sequence[str],
    *,
    on_progress: Callable[[float], None] | None = None,
) -> Coverage:
    """Classify generated images with a multinomial logistic regression that is trained on the real ones.

    The classifier minimizes mean_n CE(W x_n + b, y_n) + ||W||^2 / (2 N), with L-BFGS from zero.

    Args:
        real: uint8 (N, C, H, W).
        labels: int64 (N,), indices into ``class_names``; images with the label -1 are left out.
        samples: generated images, float (M, C, H, W), finite, M at least 1. Images in [-1, 1] (not checked).
        class_names: one name for each class. At least two classes must have real images.
        on_progress: called with the finished share of the work, from 0 to 1.

    Returns:
        The coverage.

    Raises:
        ValueError: shapes do not match, fewer than two classes have images, or samples are not finite.

    Notes:
        A fifth of each class, rounded down, is held out to measure the classifier's accuracy. Images are reduced to at
        most 16 x 16 pixels by averaging. At most 20,000 real images are used, and fewer if there are many classes, to
        limit the time to about 10 s on two cores. Deterministic at an equal number of threads.
    """
    if real.shape[1:] != samples.shape[1:] or len(real) != len(labels) or not len(samples):
        raise ValueError(
            f"class_coverage: expected samples shape (M, {', '.join(map(str, real.shape[1:]))}) and {len(real)} "
            f"labels, got {tuple(samples.shape)} and {len(labels)}"
        )
    if not samples.isfinite().all():
        raise ValueError("class_coverage: expected samples finite, got NaN or infinity")
    sizes = torch.bincount(labels[labels >= 0], minlength=len(class_names))
    present = torch.nonzero(sizes).flatten()
    if len(present) < 2:
        raise ValueError(f"class_coverage: expected labels of at least 2 classes, got labels of {len(present)}")
    height, width = (min(_MAX_SIDE, side) for side in real.shape[-2:])
    flop_per_image = 4 * real.shape[1] * height * width * len(present)
    chosen = _draw(labels, min(_MAX_IMAGES, max(1, int(_MAX_FLOP / (_MIN_ITERATIONS * flop_per_image)))))
    train, held_out = _split(labels, chosen, present)
    iterations = min(_MAX_ITERATIONS, int(_MAX_FLOP / (len(train) * flop_per_image)))

    # Classes without a real image get no output, so that no sample can be assigned to them.
    output = torch.full((len(class_names),), -1)
    output[present] = torch.arange(len(present))
    weight, bias = _fit(_features(real, train), output[labels[train]], len(present), iterations, on_progress)
    held_out_probabilities = torch.softmax(_features(real, held_out) @ weight.T + bias, dim=1)
    probabilities = torch.softmax(_features(samples, torch.arange(len(samples))) @ weight.T + bias, dim=1)

    counts = torch.bincount(probabilities.argmax(1), minlength=len(present))
    fractions = {class_names[index]: float(n) / len(samples) for index, n in zip(present.tolist(), counts)}
    accuracy = float((held_out_probabilities.argmax(1) == output[labels[held_out]]).double().mean())
    return Coverage(
        fractions=fractions,
        least_class_fraction=min(fractions.values()),
        mean_top_probability=float(probabilities.amax(1).mean()),
        real_mean_top_probability=float(held_out_probabilities.amax(1).mean()),
        classifier_accuracy=accuracy,
        chance=float(sizes.max()) / float(sizes.sum()),
        reliable=accuracy >= _MIN_ACCURACY,
        samples=len(samples),
    )


def _draw(labels: Tensor, most: int) -> Tensor:
    """Return the indices of at most ``most`` random images that have a class."""
    labeled = torch.nonzero(labels >= 0).flatten()
    return labeled[torch.randperm(len(labeled), generator=torch.Generator().manual_seed(0))[:most]]


def _split(labels: Tensor, chosen: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices to train on and indices to hold out: a fifth of each class, rounded down."""
    train, held_out = [], []
    for index in present:
        members = chosen[labels[chosen] == index]
        count = int(_HELD_OUT_FRACTION * len(members))
        held_out.append(members[:count])
        train.append(members[count:])
    return torch.cat(train), torch.cat(held_out)


def _fit(
    x: Tensor, y: Tensor, classes: int, iterations: int, on_progress: Callable[[float], None] | None
) -> tuple[Tensor, Tensor]:
    """Return weight (classes, features) and bias (classes,) of the regression."""
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, max_eval=iterations, history_size=10, line_search_fn="strong_wolfe"
    )
    done = 0

    def loss() -> Tensor:
        nonlocal done
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), y) + weight.square().sum() / (2 * len(x))
        value.backward()
        done += 1
        if on_progress is not None:
            on_progress(min(1.0, done / iterations))
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()


def _features(images: Tensor, indices: Tensor) -> Tensor:
    """Return the images, reduced by averaging, as float32 (N, features); uint8 is scaled to [-1, 1]."""
    height, width = (min(_MAX_SIDE, side) for side in images.shape[-2:])
    parts = []
    for part in indices.split(_CHUNK_IMAGES):
        batch = images[part.to(images.device)].cpu()
        batch = batch.float() / 127.5 - 1 if batch.dtype == torch.uint8 else batch.float()
        parts.append(F.adaptive_avg_pool2d(batch, (height, width)).flatten(1))
    return torch.cat(parts)
