"""Names that options take. Imports nothing, so that the command line can read options without loading torch."""

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


def check_paired_target(owner: str, argument: str, value: float, real_argument: str) -> None:
    """Check that a loss of logit pairs gets no target for generated images.

    Raises:
        ValueError: ``value`` is not 0.
    """
    if value != 0:
        raise ValueError(
            f"{owner}: expected {argument} 0 for a loss of logit pairs, got {value!r}; "
            f"a pair has only one target, {real_argument}"
        )


def parse_penalties(text: str) -> tuple[str, ...]:
    """Return the names in "none", "r1", "r1+r2", ...

    Raises:
        ValueError: another name, or one twice; the message lists the names there are.
    """
    names = tuple(text.split("+")) if text != "none" else ()
    if any(name not in PENALTIES for name in names) or len(set(names)) != len(names):
        raise ValueError(f"none, or {', '.join(PENALTIES)}, or several of these joined by +, got {text!r}")
    return names
