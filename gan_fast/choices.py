"""Names that options take. Imports nothing, so that the command line can read options without loading torch."""

from collections.abc import Callable

OBJECTIVES = (
    "minimax",
    "non_saturating",
    "hinge",
    "wasserstein",
    "least_squares",
    "relativistic",
    "relativistic_average",
)
PENALTIES = ("gradient_penalty", "dragan", "r1", "r2")
REGULARIZERS = ("spectral_norm", "weight_clipping", "feature_matching", "instance_noise")
IMAGE_SIZES = (16, 32, 64, 128)
# An activation's position is its code in the kernels: csrc/common/activation.h lists them in this order.
ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")


def _error(owner: str, argument: str, want: str, have: object) -> ValueError:
    return ValueError(f"{owner}: expected {argument} {want}, got {have!r}")


def check_paired_target(
    owner: str,
    argument: str,
    value: float,
    real_argument: str,
    error: Callable[[str, str, str, object], ValueError] = _error,
) -> None:
    """Check that a loss of logit pairs gets no target for generated images.

    Raises:
        ValueError: ``value`` is not 0; ``error`` makes it from owner, argument, and what is expected and given.
    """
    if value != 0:
        raise error(owner, argument, f"0 for a loss of logit pairs, whose only target is {real_argument}", value)


def parse_penalties(text: str) -> tuple[str, ...]:
    """Return the names in "none", "r1", "r1+r2", ...

    Raises:
        ValueError: another name, or one twice; the message lists the names there are.
    """
    names = tuple(text.split("+")) if text != "none" else ()
    if any(name not in PENALTIES for name in names) or len(set(names)) != len(names):
        raise ValueError(f"none, or {', '.join(PENALTIES)}, or several of these joined by +, got {text!r}")
    return names
