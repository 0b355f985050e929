"""Which classes of a labelled data set a generator reaches, as a classifier of the real images sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Enough for a linear classifier of digits or textures, and quick whatever the images' size.
_MAX_SIDE = 16
_MAX_IMAGES = 20_000
_HELD_OUT = 0.2
# Multiplications and additions of the whole fit: about 3 s at 150 GFLOP/s.
_BUDGET_FLOP = 4e11
_ITERATIONS = 200
_FEWEST_ITERATIONS = 50
# Images whose float copy exists at once.
_CHUNK_IMAGES = 1024
# Below this accuracy the classifier errs so often that its classes of generated images say little.
_LEAST_ACCURACY = 0.7
_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Coverage:
    """How generated images fall into classes; ``str()`` of it is a line for each class.

    Attributes:
        fractions: class name -> fraction of the generated images that the classifier puts there; classes without a
            real image are left out.
        least_class_fraction: the smallest of them; 0 where a class is missing.
        mean_top_probability: mean over the generated images of the largest class probability.
        real_mean_top_probability: the same over the held-out real images: what perfect samples would have.
        classifier_accuracy: on the held-out real images; NaN where none could be held out.
        chance: the accuracy of always naming the largest class.
        reliable: whether the classifier is accurate enough (70 %) for the fractions to mean much.
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
            f"class coverage of {self.samples} samples: least class {self.least_class_fraction:.1%}, "
            f"mean top probability {self.mean_top_probability:.3f} ({real if measured else 'no real images held out'})"
        ]
        if not measured:
            lines.append(
                "  These figures mean little: the classifier's accuracy is unknown, as no class has the 5 images of "
                "which one is held out."
            )
        elif not self.reliable:
            lines.append(
                f"  These figures mean little: the classifier names the class of {self.classifier_accuracy:.1%} of the "
                f"real images it has not seen (the largest class alone would give {self.chance:.1%})."
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
            lines.append(f"  {name:<{width}}  {fraction:6.1%}  {'#' * round(30 * fraction / most)}")
        return "\n".join(lines)


def class_coverage(
    real: Tensor,
    labels: Tensor,
    samples: Tensor,
    class_names: Sequence[str],
    *,
    on_progress: Callable[[float], None] | None = None,
) -> Coverage:
    """Classify generated images with a multinomial logistic regression trained on the real ones.

    The classifier minimises mean_n CE(W x_n + b, y_n) + ||W||^2 / (2 N), by L-BFGS from zero.

    Args:
        real: uint8 (N, C, H, W).
        labels: int64 (N,), indices into ``class_names``; -1 for an image of no class, which is left out.
        samples: float (M, C, H, W) in [-1, 1], M >= 1, finite.
        class_names: one name for each class, at least two of them among the labels.
        on_progress: called with the share of the work that is done, from 0 to 1.

    Returns:
        The coverage.

    Raises:
        ValueError: shapes do not match, fewer than two classes have images, or samples are not finite.

    Notes:
        A fifth of each class, rounded down, is held out to measure the classifier's accuracy. Images are averaged down
        to at most 16 x 16 pixels. At most 20,000 real images are used, fewer where classes are many, so that the work
        is bounded: about 10 s on two cores. Deterministic at an equal number of threads.
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
        raise ValueError(f"class_coverage: expected labels of at least 2 classes, got {len(present)}")
    features = [min(_MAX_SIDE, side) for side in real.shape[-2:]]
    flop_an_image = 4 * real.shape[1] * features[0] * features[1] * len(present)
    chosen = _draw(labels, min(_MAX_IMAGES, max(1, int(_BUDGET_FLOP / (_FEWEST_ITERATIONS * flop_an_image)))))
    train, held_out = _split(labels, chosen, present)
    iterations = min(_ITERATIONS, int(_BUDGET_FLOP / (len(train) * flop_an_image)))

    # Classes without an image get no column, so that nothing can be put there.
    column = torch.full((len(class_names),), -1)
    column[present] = torch.arange(len(present))
    weight, bias = _fit(_features(real, train), column[labels[train]], len(present), iterations, on_progress)
    seen = torch.softmax(_features(real, held_out) @ weight.T + bias, dim=1)
    generated = torch.softmax(_features(samples, torch.arange(len(samples))) @ weight.T + bias, dim=1)

    counts = torch.bincount(generated.argmax(1), minlength=len(present))
    fractions = {class_names[index]: float(n) / len(samples) for index, n in zip(present.tolist(), counts)}
    accuracy = float((seen.argmax(1) == column[labels[held_out]]).double().mean())
    return Coverage(
        fractions=fractions,
        least_class_fraction=min(fractions.values()),
        mean_top_probability=float(generated.amax(1).mean()),
        real_mean_top_probability=float(seen.amax(1).mean()),
        classifier_accuracy=accuracy,
        chance=float(sizes.max()) / float(sizes.sum()),
        reliable=accuracy >= _LEAST_ACCURACY,
        samples=len(samples),
    )


def _draw(labels: Tensor, most: int) -> Tensor:
    """Draw at most ``most`` of the images that have a class."""
    labelled = torch.nonzero(labels >= 0).flatten()
    return labelled[torch.randperm(len(labelled), generator=torch.Generator().manual_seed(0))[:most]]


def _split(labels: Tensor, chosen: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Hold out a fifth of each class, rounded down: a class of four images or fewer is trained on whole."""
    train, held_out = [], []
    for index in present:
        own = chosen[labels[chosen] == index]
        count = int(_HELD_OUT * len(own))
        held_out.append(own[:count])
        train.append(own[count:])
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
    """Average images down and flatten them to float32 (N, features); uint8 is taken to [-1, 1]."""
    height, width = (min(_MAX_SIDE, side) for side in images.shape[-2:])
    parts = []
    for part in indices.split(_CHUNK_IMAGES):
        batch = images[part.to(images.device)].cpu()
        batch = batch.float() / 127.5 - 1 if batch.dtype == torch.uint8 else batch.float()
        parts.append(F.adaptive_avg_pool2d(batch, (height, width)).flatten(1))
    return torch.cat(parts)
