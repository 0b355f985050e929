"""The configurations of the training algorithm and of a run, checked when they are made.

Does not import torch: the command line reads its options here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gan_fast import choices

PRECISIONS = ("fp32", "bf16", "auto")
CUDA_GRAPH = ("auto", "on", "off")
UPDATES = ("alternating", "one_stage")


@dataclass(frozen=True)
class TrainConfig:
    """What one adversarial training does, apart from the models and the data.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: a field out of its range; the message names it and what is wanted.
    """

    objective: str = "non_saturating"
    """The losses: "minimax", "non_saturating", "hinge", "wasserstein", "least_squares", "relativistic" or
    "relativistic_average"."""
    penalty: str = "none"
    """What the discriminator pays for its gradient by the images: "none", "gradient_penalty" (WGAN-GP), "dragan", "r1",
    "r2", or several joined by +, as "r1+r2"."""
    penalty_weight: float = 10.0
    """Of each penalty; r1 and r2 have a factor 1/2 of their own."""
    penalty_center: float = 1.0
    """The gradient norm that gradient_penalty and dragan pull to."""
    penalty_every: int = 1
    """Discriminator updates from one with penalties to the next; they weigh as many times more. Adam's rates stay."""
    regularizers: tuple[str, ...] = ()
    """Any of "spectral_norm" and "weight_clipping" (of the discriminator), "feature_matching" (for the generator) and
    "instance_noise" (on all images that the discriminator sees)."""
    clip_value: float = 0.01
    """weight_clipping: the discriminator's parameters stay in [-clip_value, clip_value]."""
    noise_std: float = 0.1
    """instance_noise: standard deviation at the first step, on images in [-1, 1]; it falls linearly."""
    noise_steps: int | None = None
    """instance_noise: steps until it is gone; unset: all steps, those that a resumed run adds included."""
    feature_weight: float = 1.0
    """feature_matching: weight beside the generator's loss."""
    update: str = "alternating"
    """"alternating": the generator learns from the discriminator just updated; "one_stage": both from one pass through
    the one before, which is another algorithm and a cheaper one, for discriminators without batch norm."""
    d_steps: int = 1
    """Discriminator updates before each generator update."""
    batch_size: int = 64
    """Images in a batch, at least 2: batch norm needs a variance."""
    steps: int = 5000
    """Iterations of fit(), each of d_steps discriminator updates and one generator update."""
    precision: str = "auto"
    """"fp32", "bf16" (autocast; weights stay float32), or "auto": bf16 on a GPU, fp32 on a CPU."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ...; "auto" takes the GPU where there is one."""
    cuda_graph: str = "auto"
    """Launch a whole iteration as one CUDA graph: "auto" (on a GPU, where the step allows it), "on" (an error where it
    does not), or "off"."""
    seed: int = 0
    """Of the latents and of the order of the data; the command line also initialises the weights from it."""
    latent_dim: int | None = None
    """Length of the latent vector; unset: the generator's own latent_dim."""
    d_lr: float = 2e-4
    """Adam's learning rate for the discriminator."""
    g_lr: float = 2e-4
    """Adam's learning rate for the generator."""
    d_betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates for the discriminator."""
    g_betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates for the generator."""
    ema_decay: float = 0.999
    """Decay per step of the averaged generator; step t (from 1) uses min(ema_decay, t / (t + 9))."""
    real_label: float = 1.0
    """The discriminator's target for real images; 0.9 is the usual one-sided smoothing."""
    fake_label: float = 0.0
    """The discriminator's target for generated images."""
    log_every: int = 50
    """Steps between two readings of the losses, the only times when the host waits for the device."""
    max_skipped_steps: int = 100
    """Give up after this many iterations in a row whose gradients were not finite."""

    def __post_init__(self) -> None:
        for name, minimum in _INTEGERS.items():
            self._check_int(name, minimum)
        if self.latent_dim is not None:
            self._check_int("latent_dim", 1)
        for name in ("d_lr", "g_lr", "clip_value"):
            value = self._number(name, getattr(self, name))
            if not (0 < value < math.inf):
                raise self._error(name, "in (0, inf)", value)
        for name in ("d_betas", "g_betas"):
            self._check_betas(name)
        if not 0 <= self._number("ema_decay", self.ema_decay) < 1:
            raise self._error("ema_decay", "in [0, 1)", self.ema_decay)
        for name in ("real_label", "fake_label"):
            if not 0 <= self._number(name, getattr(self, name)) <= 1:
                raise self._error(name, "in [0, 1]", getattr(self, name))
        for name in ("penalty_weight", "penalty_center", "noise_std", "feature_weight"):
            value = self._number(name, getattr(self, name))
            if not (0 <= value < math.inf):
                raise self._error(name, "in [0, inf)", value)
        self._check_regularization()
        for name, allowed in (
            ("objective", choices.OBJECTIVES),
            ("update", UPDATES),
            ("precision", PRECISIONS),
            ("cuda_graph", CUDA_GRAPH),
        ):
            if getattr(self, name) not in allowed:
                raise self._error(name, f"one of {', '.join(allowed)}", getattr(self, name))
        if self.objective == "relativistic":
            choices.check_paired_target("TrainConfig", "fake_label", self.fake_label, "real_label")
        if not isinstance(self.device, str):
            raise self._type_error("device", "str", self.device)

    def _check_regularization(self) -> None:
        if not isinstance(self.penalty, str):
            raise self._type_error("penalty", "str", self.penalty)
        try:
            choices.parse_penalties(self.penalty)
        except ValueError as error:
            raise ValueError(f"TrainConfig: expected penalty {error}") from None
        if isinstance(self.regularizers, str) or not isinstance(self.regularizers, Sequence):
            raise self._type_error("regularizers", "tuple of str", self.regularizers)
        # A list is what JSON makes of a tuple; equal configurations must compare equal.
        object.__setattr__(self, "regularizers", tuple(self.regularizers))
        names = self.regularizers
        if any(name not in choices.REGULARIZERS for name in names) or len(set(names)) != len(names):
            raise self._error("regularizers", f"any of {', '.join(choices.REGULARIZERS)}, each once", names)
        if self.noise_steps is not None:
            self._check_int("noise_steps", 1)
        if self.update == "one_stage":
            if self.d_steps != 1:
                raise self._error("d_steps", "1 for update one_stage", self.d_steps)
            if "feature_matching" in names:
                raise self._error("regularizers", "without feature_matching for update one_stage", names)

    def _check_int(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._type_error(name, "int", value)
        if value < minimum:
            raise self._error(name, f"at least {minimum}", value)
        if value >= 2**63:
            raise self._error(name, "below 2**63", value)

    def _check_betas(self, name: str) -> None:
        pair = getattr(self, name)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise self._type_error(name, "pair of float", pair)
        if not all(0 <= self._number(name, beta) < 1 for beta in pair):
            raise self._error(name, "in [0, 1)", tuple(pair))
        # A list is what JSON makes of a tuple, and Adam takes no 0 beside 0.9; equal configurations must compare equal.
        object.__setattr__(self, name, tuple(map(float, pair)))

    def _number(self, name: str, value: object) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self._type_error(name, "float", value)
        return value

    def _error(self, name: str, want: str, have: object) -> ValueError:
        return ValueError(f"TrainConfig: expected {name} {want}, got {have!r}")

    def _type_error(self, name: str, want: str, have: object) -> TypeError:
        return TypeError(f"TrainConfig: expected {name} type {want}, got {type(have).__name__}")


_INTEGERS = {
    "d_steps": 1,
    "penalty_every": 1,
    "batch_size": 2,
    "steps": 1,
    "seed": 0,
    "log_every": 1,
    "max_skipped_steps": 1,
}

# What may differ when a run is resumed. It decides where a run stops, what it reports and where it is computed; of what
# decides how it learns, only the learning rates. The data are compared by their content.
FREE = frozenset(
    {
        *("steps", "d_lr", "g_lr", "device", "cuda_graph", "log_every", "max_skipped_steps"),
        *("data", "bad_files", "max_skipped_files"),
        *("sample_every", "checkpoint_every", "tensorboard", "class_coverage"),
    }
)


class RunError(ValueError):
    """A run that cannot be started as asked; the message says what to change."""


@dataclass(frozen=True)
class RunConfig:
    """A training: the algorithm's settings, the model, the data and the folder.

    Raises:
        TypeError, ValueError: a field of the wrong type or out of its range.
    """

    data: str
    """"digits" (scikit-learn's), a folder or a zip of images; a folder in it is a class."""
    out: Path
    """The run's folder; made where it is missing."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The algorithm."""
    image_size: int = 64
    """Side in pixels: 16, 32, 64 or 128."""
    width: int = 64
    """Channels of the networks' outer hidden layers; they double towards the middle."""
    d_norm: str = "batch"
    """The discriminator's normalisation: "batch" or "none"."""
    channels: int | None = None
    """1 (grey) or 3 (RGB); unset: as the data are."""
    bad_files: str = "raise"
    """"raise" at the first image that cannot be read, or "skip"."""
    max_skipped_files: int = 100
    """How many unreadable images "skip" may leave out."""
    sample_every: int = 500
    """Steps between two sample grids."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    tensorboard: bool = False
    """Write TensorBoard event files too."""
    class_coverage: bool = True
    """Where the data have classes, measure at the end how the samples fall into them."""

    def __post_init__(self) -> None:
        if not isinstance(self.data, (str, os.PathLike)):
            raise TypeError(f"RunConfig: expected data type str or Path, got {type(self.data).__name__}")
        minimums = {"sample_every": 1, "checkpoint_every": 1, "width": 1, "image_size": 1, "max_skipped_files": 0}
        if self.channels is not None:
            minimums["channels"] = 1
        for name, minimum in minimums.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"RunConfig: expected {name} type int, got {type(value).__name__}")
            if value < minimum:
                raise ValueError(f"RunConfig: expected {name} at least {minimum}, got {value}")
            if value >= 2**63:
                raise ValueError(f"RunConfig: expected {name} below 2**63, got {value}")
        for name, allowed in (
            ("bad_files", ("raise", "skip")),
            ("d_norm", ("batch", "none")),
            ("image_size", choices.IMAGE_SIZES),
            ("channels", (1, 3, None)),
        ):
            if getattr(self, name) not in allowed:
                have = getattr(self, name)
                raise ValueError(f"RunConfig: expected {name} one of {', '.join(map(str, allowed))}, got {have!r}")
        if self.train.update == "one_stage" and self.d_norm != "none":
            raise ValueError(f"RunConfig: expected d_norm none for update one_stage, got {self.d_norm!r}")

    def flat(self) -> dict[str, Any]:
        """Return the options as one flat dict of JSON values, without the folder itself; paths are absolute."""
        options = asdict(self)
        del options["out"]
        options |= options.pop("train")
        if self.data != "digits":
            # As UTF-8 whatever the locale: a run may be resumed under another one.
            path = os.path.abspath(os.fsencode(self.data))
            options["data"] = path.decode("utf-8", "surrogateescape")
        return json.loads(json.dumps(options))

    @classmethod
    def from_flat(cls, options: Mapping[str, Any], out: Path) -> RunConfig:
        """Return the configuration that :meth:`flat` was called on; an option that is missing has its default.

        Raises:
            TypeError, ValueError: an unknown option, or one of the wrong type or out of its range.
        """
        names = {f.name for f in fields(TrainConfig)}
        train = TrainConfig(**{name: value for name, value in options.items() if name in names})
        rest = {name: value for name, value in options.items() if name not in names}
        if isinstance(rest.get("data"), str):
            rest["data"] = os.fsdecode(rest["data"].encode("utf-8", "surrogateescape"))
        return cls(out=out, train=train, **rest)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a run's config.json.

    Raises:
        RunError: there is none, or it holds no configuration.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise RunError(f"train: expected out a folder with a run to resume, got {folder} without config.json")
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise TypeError(f"no JSON object but type {type(record).__name__}")
        for name in ("config", "versions"):
            if not isinstance(record.get(name, {}), dict):
                raise TypeError(f"{name} of type {type(record[name]).__name__}")
        RunConfig.from_flat(record.get("config", {}), folder)
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"train: expected {path} to hold a configuration, got: {error}") from error
    return record
