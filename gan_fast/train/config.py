"""The configurations of the training algorithm and of a run. Fields are checked when a configuration is made.

This module must not import torch: the command line builds its options from these classes.

>>> from gan_fast.train import TrainConfig
>>> config = TrainConfig(objective="wasserstein", penalty=("gradient_penalty",), d_steps=5, d_betas=(0, 0.9))
>>> config.d_betas
(0.0, 0.9)
>>> TrainConfig(batch_size=1)
Traceback (most recent call last):
    ...
gan_fast.train.config.ConfigError: TrainConfig: expected batch_size at least 2, got 1
"""

from __future__ import annotations

import json
import math
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from gan_fast.choices import (
    BadFiles,
    Channels,
    CudaGraph,
    ImageSize,
    Norm,
    Objective,
    PenaltyOrNone,
    Precision,
    Regularizer,
    Update,
    check_paired_target,
)
from gan_fast.field_docs import documents_fields


class ConfigError(ValueError):
    """A field of a configuration has a value that is not allowed.

    Attributes:
        field: name of the field.
        problem: what is wrong with its value; does not repeat the name.
    """

    def __init__(self, owner: str, field: str, want: str, have: object) -> None:
        # All arguments go to the base class, so that the exception can be pickled.
        super().__init__(owner, field, want, have)
        self.owner, self.field, self.problem = owner, field, f"expected {want}, got {have}"

    def __str__(self) -> str:
        return f"{self.owner}: {self.problem.replace('expected', f'expected {self.field}', 1)}"


@dataclass(frozen=True)
class _Range:
    """The values that a number may have."""

    text: str
    contains: Callable[[float], bool]

    def __str__(self) -> str:
        """The text after the name of a type, as in "float, at least 0"."""
        return self.text.removeprefix("a number ").removeprefix("of ")


Index = Annotated[int, _Range("at least 0", lambda x: x >= 0)]
Count = Annotated[int, _Range("at least 1", lambda x: x >= 1)]
BatchSize = Annotated[int, _Range("at least 2", lambda x: x >= 2)]
Positive = Annotated[float, _Range("a positive number", lambda x: 0 < x < math.inf)]
NonNegative = Annotated[float, _Range("a number of at least 0", lambda x: 0 <= x < math.inf)]
Probability = Annotated[float, _Range("a number from 0 to 1", lambda x: 0 <= x <= 1)]
Decay = Annotated[float, _Range("a number of at least 0 and below 1", lambda x: 0 <= x < 1)]


def _check_fields(config: Any) -> None:
    """Check every field against its annotation, and convert lists to tuples and numbers of float fields to float."""
    owner = type(config).__name__
    hints = get_type_hints(type(config), include_extras=True)
    for f in fields(config):
        value = _checked(owner, f.name, hints[f.name], getattr(config, f.name))
        object.__setattr__(config, f.name, value)


def _checked(owner: str, name: str, annotation: Any, value: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):  # only `X | None` occurs
        if value is None:
            return None
        (annotation,) = (a for a in get_args(annotation) if a is not type(None))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        # The types are compared too, because True == 1.
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise ConfigError(owner, name, f"one of {', '.join(map(str, arguments))}", repr(value))
        return value
    if origin is tuple:
        # JSON turns tuples into lists; converted back, equal configurations compare equal.
        if not isinstance(value, (tuple, list)):
            want = "names" if arguments[-1] is Ellipsis else "numbers"
            raise TypeError(f"{owner}: expected {name} type tuple of {want}, got {type(value).__name__}")
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
            if len(set(map(repr, value))) != len(value):
                raise ConfigError(owner, name, "to have each name once", tuple(value))
        elif len(value) != len(arguments):
            raise TypeError(f"{owner}: expected {name} to be {len(arguments)} numbers, got {len(value)}")
        return tuple(_checked(owner, name, a, item) for a, item in zip(arguments, value))
    kind = arguments[0] if origin is Annotated else annotation
    if kind is Path:
        # The command line's parser fills required fields with placeholders.
        return value
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{owner}: expected {name} type {kind.__name__}, got {type(value).__name__}")
    if origin is Annotated and not arguments[1].contains(value):
        raise ConfigError(owner, name, arguments[1].text, value)
    # Of fields for floats too: an integer may be too large for a float.
    if isinstance(value, int) and value >= 2**63:
        raise ConfigError(owner, name, "below 2**63", value)
    return float(value) if kind is float else value


@documents_fields
@dataclass(frozen=True)
class TrainConfig:
    """The settings of one adversarial training, without the models and the data.

    ``penalty`` and ``regularizers`` also accept a single name, as in ``TrainConfig(penalty="r1")``.

    Raises:
        TypeError: a field has the wrong type.
        ConfigError: a field has a value that is not allowed (a ValueError; the message names the field and the values
            that are).
    """

    objective: Objective = "non_saturating"
    """The adversarial losses. docs/objectives.md has the formulas."""
    penalty: tuple[PenaltyOrNone, ...] = ()
    """Penalties on the gradient of the discriminator with respect to its input images: any of "gradient_penalty"
    (WGAN-GP), "dragan", "r1" and "r2". "none", or no name: no penalty."""
    penalty_weight: NonNegative = 10.0
    """Weight of each penalty. r1 and r2 have an additional factor of 1/2."""
    penalty_center: NonNegative = 1.0
    """Target gradient norm of gradient_penalty and dragan."""
    penalty_every: Count = 1
    """Add the penalties at every k-th discriminator update only, k times as heavy. Adam's rates are not rescaled."""
    regularizers: tuple[Regularizer, ...] = ()
    """Any of "spectral_norm" and "weight_clipping" (on the discriminator's weights), "feature_matching" (a term of the
    generator's loss) and "instance_noise" (added to all images that the discriminator sees)."""
    clip_value: Positive = 0.01
    """weight_clipping: the discriminator's parameters are clipped to -clip_value .. clip_value."""
    noise_std: NonNegative = 0.1
    """instance_noise: standard deviation at the first step, for images in [-1, 1]; decreases linearly."""
    noise_steps: Count | None = None
    """instance_noise: steps until the noise is zero. Unset: all steps, including those added when a run is resumed."""
    feature_weight: NonNegative = 1.0
    """feature_matching: weight of the term in the generator's loss."""
    update: Update = "alternating"
    """"alternating": the generator is trained against the discriminator just updated. "one_stage": both use one pass
    through the discriminator before its update. That is cheaper but a different algorithm, and it needs a
    discriminator without batch norm."""
    d_steps: Count = 1
    """Discriminator updates per generator update."""
    batch_size: BatchSize = 64
    """Images per batch; at least 2, because batch norm needs a variance."""
    steps: Count = 5000
    """Training iterations, each of d_steps discriminator updates and one generator update."""
    precision: Precision = "auto"
    """"fp32", "bf16" (autocast; weights stay in float32), or "auto": bf16 on a GPU, fp32 on a CPU."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ...; "auto" uses the GPU if there is one."""
    cuda_graph: CudaGraph = "auto"
    """Run a whole iteration as one CUDA graph: "auto" (on a GPU, if the step can be captured), "on" (raise an error if
    it cannot), or "off"."""
    seed: Index = 0
    """Seed of the latents, the order of the data and, in a run, the initial weights."""
    latent_dim: Count | None = None
    """Length of the latent vector. Unset: 100 for a run; in Python, latent_dim of the generator."""
    d_lr: Positive = 2e-4
    """Adam's learning rate for the discriminator."""
    g_lr: Positive = 2e-4
    """Adam's learning rate for the generator."""
    d_betas: tuple[Decay, Decay] = (0.5, 0.999)
    """Adam's decay rates for the discriminator."""
    g_betas: tuple[Decay, Decay] = (0.5, 0.999)
    """Adam's decay rates for the generator."""
    ema_decay: Decay = 0.999
    """Decay per step of the averaged generator; step t (counted from 1) uses min(ema_decay, t / (t + 9))."""
    real_label: Probability = 1.0
    """The discriminator's target for real images; 0.9 is the usual one-sided label smoothing."""
    fake_label: Probability = 0.0
    """The discriminator's target for generated images."""
    log_every: Count = 50
    """Steps between two log rows. The host waits for the GPU only then."""
    max_skipped_steps: Count = 100
    """Stop with an error after this many consecutive iterations with gradients that are not finite."""

    def __post_init__(self) -> None:
        for name in ("penalty", "regularizers"):
            value = getattr(self, name)
            if isinstance(value, str):
                if "+" in value:
                    names = str(tuple(value.split("+")))
                    raise ConfigError("TrainConfig", name, f"a tuple of names such as {names}", repr(value))
                object.__setattr__(self, name, (value,))
        _check_fields(self)
        if "none" in self.penalty:
            if len(self.penalty) > 1:
                others = ", ".join(name for name in self.penalty if name != "none")
                have = f"{' '.join(self.penalty)}; none cannot be combined with {others}"
                raise ConfigError("TrainConfig", "penalty", "none or names of penalties", have)
            object.__setattr__(self, "penalty", ())
        if self.objective == "relativistic":
            check_paired_target("TrainConfig", "fake_label", self.fake_label, "real_label", ConfigError)
        if self.update == "one_stage":
            if self.d_steps != 1:
                raise ConfigError("TrainConfig", "d_steps", "1 when update is one_stage", self.d_steps)
            if "feature_matching" in self.regularizers:
                want = "names other than feature_matching when update is one_stage"
                raise ConfigError("TrainConfig", "regularizers", want, self.regularizers)


# The fields that may change when a run is resumed: where it stops, what it reports, where it is computed, and the
# learning rates, but no other setting that decides how it learns. The data are compared by content, not by path.
CHANGEABLE = frozenset(
    {
        *("steps", "d_lr", "g_lr", "device", "cuda_graph", "log_every", "max_skipped_steps"),
        *("data", "bad_files", "max_skipped_files"),
        *("sample_every", "checkpoint_every", "tensorboard", "class_coverage"),
    }
)


class RunError(ValueError):
    """A run cannot be started; the message names the option of ``gan-fast train`` that has to change."""


@documents_fields
@dataclass(frozen=True)
class RunConfig:
    """The settings of a run: the algorithm, the models, the data and the folder.

    Raises:
        TypeError: a field has the wrong type.
        ConfigError: a field has a value that is not allowed.
    """

    data: str
    """"digits" (the digits of scikit-learn), or a folder or zip of images; its sub-folders are classes."""
    out: Path
    """Folder of the run; created if it is missing."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The algorithm."""
    image_size: ImageSize = 64
    """Height and width of the images in pixels."""
    width: Count = 64
    """Channels of the generator's last and the discriminator's first hidden layer; each further layer doubles them."""
    d_norm: Norm = "batch"
    """Normalization of the discriminator."""
    channels: Channels | None = None
    """1 (gray) or 3 (RGB). Unset: 1 if all images are gray, else 3."""
    bad_files: BadFiles = "raise"
    """Images that cannot be read: stop at the first, or skip them."""
    max_skipped_files: Index = 100
    """With bad_files skip: stop if more images than this cannot be read."""
    sample_every: Count = 500
    """Steps between two sample grids."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    class_coverage: bool = True
    """If the data have classes: measure at the end how the samples are distributed over them."""

    def __post_init__(self) -> None:
        if isinstance(self.data, os.PathLike):
            object.__setattr__(self, "data", os.fspath(self.data))
        _check_fields(self)
        if self.train.update == "one_stage" and self.d_norm != "none":
            raise ConfigError("RunConfig", "d_norm", "none (no batch norm) when update is one_stage", self.d_norm)

    def flat(self) -> dict[str, Any]:
        """Return the options as one flat dict of JSON values; leaves out the folder and makes paths absolute."""
        options = asdict(self)
        del options["out"]
        options |= options.pop("train")
        if self.data != "digits":
            # Encode as UTF-8 in any locale, because a run may be resumed in another one.
            path = os.path.abspath(os.fsencode(self.data))
            options["data"] = path.decode("utf-8", "surrogateescape")
        return json.loads(json.dumps(options))

    @classmethod
    def from_flat(cls, options: Mapping[str, Any], out: Path) -> RunConfig:
        """Return the configuration that :meth:`flat` was called on; a missing option has its default.

        Raises:
            TypeError, ValueError: an option is unknown, has the wrong type, or has a value that is not allowed.
        """
        options = dict(options)
        penalty = options.get("penalty")
        if isinstance(penalty, str):  # from a version that joined the names by "+"
            options["penalty"] = penalty.split("+")
        names = {f.name for f in fields(TrainConfig)}
        train = TrainConfig(**{name: value for name, value in options.items() if name in names})
        rest = {name: value for name, value in options.items() if name not in names}
        if isinstance(rest.get("data"), str):
            rest["data"] = os.fsdecode(rest["data"].encode("utf-8", "surrogateescape"))
        return cls(out=out, train=train, **rest)

    def options_without_effect(self) -> list[str]:
        """Return a text such as "--noise-std (needs --regularizers instance_noise)" for each option that is ignored."""
        train = self.train
        pulls_norm = {"gradient_penalty", "dragan"} & set(train.penalty)
        needs = {
            "clip_value": ("weight_clipping" in train.regularizers, "--regularizers weight_clipping"),
            "noise_std": ("instance_noise" in train.regularizers, "--regularizers instance_noise"),
            "noise_steps": ("instance_noise" in train.regularizers, "--regularizers instance_noise"),
            "feature_weight": ("feature_matching" in train.regularizers, "--regularizers feature_matching"),
            "penalty_weight": (train.penalty, "--penalty"),
            "penalty_every": (train.penalty, "--penalty"),
            "penalty_center": (pulls_norm, "--penalty gradient_penalty or dragan"),
            "max_skipped_files": (self.bad_files == "skip", "--bad-files skip"),
        }
        defaults = {f.name: f.default for f in (*fields(TrainConfig), *fields(RunConfig))}
        return [
            f"{option_of(name)} (needs {needed})"
            for name, (used, needed) in needs.items()
            if not used and getattr(train, name, getattr(self, name, None)) != defaults[name]
        ]


def option_of(field_name: str) -> str:
    """Return the command-line option that sets a field."""
    return "--" + field_name.replace("_", "-")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a run's config.json.

    Raises:
        RunError: the file does not exist or does not hold a configuration.
    """
    path = folder / "config.json"
    if not path.is_file():
        problem = "has no config.json" if folder.exists() else "does not exist"
        raise RunError(f"--out: expected the folder of a run to resume, got {folder}, which {problem}")
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise TypeError(f"JSON of type {type(record).__name__}, not an object")
        for name in ("config", "versions"):
            if not isinstance(record.get(name, {}), dict):
                raise TypeError(f"{name} of type {type(record[name]).__name__}")
        RunConfig.from_flat(record.get("config", {}), folder)
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"--out: expected {path} to hold the configuration of a run, got: {error}") from error
    return record
