"""A training in a folder: what ``gan-fast train`` runs."""

from __future__ import annotations

import copy
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from gan_fast.data import ImageData, load_images
from gan_fast.files import previous_of, write_bytes_safely, write_safely
from gan_fast.metrics import Coverage, class_coverage
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train.checkpoint import load_checkpoint, save_checkpoint, save_generator
from gan_fast.train.config import TrainConfig
from gan_fast.train.loop import LOGGED, Trainer, TrainingDivergedError, draw_latents, resolve_device
from gan_fast.train.pictures import write_curves, write_grid
from gan_fast.train.process import ThreadChoice, fastest_threads, stopping_signals
from gan_fast.version import __version__

_LATENT_DIM = 100
_GRID_IMAGES = 64
_COVERAGE_SAMPLES = 1000
_SHOWN_FILES = 5
# Of a shorter training the measurement would be too large a part.
_STEPS_WORTH_MEASURING = 200

# What may change when a run is resumed: it decides where a run stops and what it reports, and where and how fast it is
# computed, not how it learns.
_FREE = (
    "steps",
    "device",
    "cuda_graph",
    "log_every",
    "max_skipped_steps",
    "sample_every",
    "checkpoint_every",
    "tensorboard",
    "class_coverage",
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
    """Measure at the end which classes the generator reaches, where the data have classes; some seconds."""

    def __post_init__(self) -> None:
        for name in ("sample_every", "checkpoint_every", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"RunConfig: expected {name} type int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"RunConfig: expected {name} at least 1, got {value}")
        for name, allowed in (("bad_files", ("raise", "skip")), ("d_norm", ("batch", "none"))):
            if getattr(self, name) not in allowed:
                have = getattr(self, name)
                raise ValueError(f"RunConfig: expected {name} one of {', '.join(allowed)}, got {have!r}")

    def flat(self) -> dict[str, Any]:
        """Return the options as one flat dict of JSON values, without the folder itself."""
        options = asdict(self)
        del options["out"]
        options |= options.pop("train")
        return json.loads(json.dumps(options))


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each option that differs."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name}: the run has {before.get(name)!r}, the command {now.get(name)!r}" for name in names]


class Run:
    """One training and its folder.

    The folder holds config.json, metrics.jsonl, samples/step_NNNNNN.png, curves.png, checkpoint.pt and the one before
    it, generator.safetensors, generator_ema.safetensors, and class_coverage.json where the data have classes.

    Args:
        config: what to train.
        resume: continue the run that is in the folder.
        measure_threads: on a CPU, time a few steps of a new training and set the number of threads that is fastest.
        say: is told what a person should know, a line at a time.

    Attributes:
        trainer: the training.
        images: the data.

    Raises:
        RunError: the folder holds a run and ``resume`` is not set, or holds none and it is; the run in it was
            configured otherwise; TensorBoard is asked for and not installed.
        DataError: the data cannot be read.
        CheckpointError: neither checkpoint can be used.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        resume: bool = False,
        measure_threads: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config, self.folder, self._say = config, config.out, say
        self._images_before: int | None = None
        self._check_folder(resume)
        self._writer = _tensorboard_writer(self.folder) if config.tensorboard else None
        self._rows = self._read_rows() if resume else []
        self.images = _load(config)
        count = len(self.images.images)
        if self._images_before not in (None, count):
            say(f"changed: the run had {self._images_before} images, the data have {count}: not the same run any more")
        say(str(self.images))
        for line in (*self._skipped_files(), *self.images.notes):
            say(line)
        self._model = {
            "latent_dim": config.train.latent_dim or _LATENT_DIM,
            "channels": self.images.images.shape[1],
            "image_size": config.image_size,
            "width": config.width,
        }
        torch.manual_seed(config.train.seed)
        generator = DCGANGenerator(**self._model)
        discriminator = DCGANDiscriminator(self._model["channels"], config.image_size, config.width, config.d_norm)
        # The layout that convolutions are quicker in; on a CPU the models see to that, and a weight stays as it lies.
        if resolve_device(config.train.device).type != "cpu":
            for model in (generator, discriminator):
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        on_cpu = resolve_device(config.train.device).type == "cpu"
        # A resumed run keeps the threads that it had: with others its sums would be rounded otherwise.
        if measure_threads and on_cpu and not resume and config.train.steps >= _STEPS_WORTH_MEASURING:
            say(str(_measure_threads(config.train, generator, discriminator, self.images.images)))
        self.trainer = Trainer(config.train, generator, discriminator, self.images)
        self._grid_z = draw_latents(_GRID_IMAGES, self._model["latent_dim"], config.train.seed)
        self._checkpointed_step = 0
        if resume:
            self._resume()
        self._prepare_folder()

    def train(self) -> int | None:
        """Train to the end or until SIGINT or SIGTERM, and write everything.

        Returns:
            The number of the signal that ended it early, else None.

        Raises:
            TrainingDivergedError: the gradients or the weights are not finite; the last checkpoint stands.
            CheckpointError: a file could not be saved.
        """
        config, trainer = self.config.train, self.trainer
        earlier_s = self._rows[-1]["time_s"] if self._rows else 0.0
        with ExitStack() as stack:
            if self._writer is not None:
                stack.callback(self._writer.close)
            metrics = stack.enter_context(open(self.folder / "metrics.jsonl", "a", encoding="utf-8"))
            # Where nobody watches, a line now and then is enough.
            interval_s = 0.2 if sys.stderr.isatty() else 30.0
            bar = stack.enter_context(
                tqdm(total=config.steps, initial=trainer.steps_done, desc="train", unit="step", mininterval=interval_s)
            )
            received = stack.enter_context(stopping_signals(trainer.stop))

            def on_log(row: dict[str, float]) -> None:
                row["time_s"] += earlier_s
                self._rows.append({name: _json_number(value) for name, value in row.items()})
                metrics.write(json.dumps(self._rows[-1]) + "\n")
                metrics.flush()
                shown = {name: f"{row[name]:.3f}" for name in LOGGED}
                bar.set_postfix({**shown, "images/s": f"{row['images_per_s']:.0f}"}, refresh=False)
                if self._writer is not None:
                    for name, value in row.items():
                        self._writer.add_scalar(name, value, int(row["step"]))

            def on_step(step: int) -> None:
                bar.update()
                if step % self.config.sample_every == 0:
                    self._save_samples()
                if step % self.config.checkpoint_every == 0:
                    self._save_state()

            trainer.fit(on_log, on_step)
            # Inside the block: a second Ctrl-C may end the program at once, but the first one's save is not disturbed.
            if trainer.steps_done != self._checkpointed_step:
                self._save_state()
            self._save_samples()
            if self._rows:
                write_safely(self.folder / "curves.png", lambda file: write_curves(file, self._rows))
        if received.number is None:
            self._report_coverage()
        return received.number

    def _check_folder(self, resume: bool) -> None:
        config_path = self.folder / "config.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"train: expected out a folder, got the file {self.folder}")
        if not resume:
            if config_path.exists() or self._checkpoint.exists():
                raise RunError(
                    f"train: expected out a folder without a run, got {self.folder}, which holds one; "
                    "continue it with --resume, or choose another folder"
                )
            return
        if not config_path.exists():
            raise RunError(f"train: expected out a folder with a run to resume, got {self.folder} without config.json")
        try:
            record = json.loads(config_path.read_text(encoding="utf-8"))
            before = record["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"train: expected {config_path} to hold a configuration, got: {error}") from error
        # Options that were not there yet when the run was started did what their defaults do.
        before = {**RunConfig(data="", out=Path()).flat(), **before}
        now = self.config.flat()
        binding = difference(*({k: v for k, v in c.items() if k not in _FREE} for c in (before, now)))
        if binding:
            raise RunError(f"train: expected the options that {self.folder} was started with, got {'; '.join(binding)}")
        for line in difference(before, now):
            self._say(f"changed: {line}")
        self._images_before = record.get("images")

    def _prepare_folder(self) -> None:
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        # Rows of steps that are trained again would appear twice.
        text = "".join(json.dumps(row) + "\n" for row in self._rows)
        write_bytes_safely(self.folder / "metrics.jsonl", text)
        record = {
            "config": self.config.flat(),
            "model": self._model,
            "versions": {
                "gan_fast": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "device": str(self.trainer.device),
            "cpu_threads": torch.get_num_threads(),
            "images": len(self.images.images),
        }
        write_bytes_safely(self.folder / "config.json", json.dumps(record, indent=2) + "\n")

    def _resume(self) -> None:
        if not self._checkpoint.exists() and not previous_of(self._checkpoint).exists():
            self._say("no checkpoint was written yet: starting at step 0")
        else:
            self.trainer.load_state_dict(load_checkpoint(self._checkpoint, warn=self._say)["trainer"])
            self._checkpointed_step = self.trainer.steps_done
            if self.config.train.steps < self.trainer.steps_done:
                raise RunError(
                    f"train: expected steps above the {self.trainer.steps_done} that {self.folder} has done, "
                    f"got {self.config.train.steps}"
                )
            self._say(f"resuming at step {self.trainer.steps_done}")
        self._rows = [row for row in self._rows if row["step"] <= self.trainer.steps_done]

    def _skipped_files(self) -> list[str]:
        skipped = self.images.skipped
        lines = [f"skipped {file}" for file in skipped[:_SHOWN_FILES]]
        return lines + [f"... and {len(skipped) - _SHOWN_FILES} more"] * (len(skipped) > _SHOWN_FILES)

    def _read_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        path = self.folder / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            # The last line of a killed run may be cut short.
            except ValueError:
                break
        return rows

    def _save_state(self) -> None:
        if not self.trainer.is_finite():
            raise TrainingDivergedError(
                f"train: expected finite weights at step {self.trainer.steps_done}, got NaN or infinity; "
                f"the checkpoint of step {self._checkpointed_step} stands"
            )
        state = self.trainer.state_dict()
        save_checkpoint(self._checkpoint, {"trainer": state, "config": json.dumps(self.config.flat())})
        save_generator(self.folder / "generator.safetensors", self.trainer.generator, self._model)
        save_generator(self.folder / "generator_ema.safetensors", self.trainer.ema_generator, self._model)
        self._checkpointed_step = self.trainer.steps_done

    def _save_samples(self) -> None:
        step = self.trainer.steps_done
        images = self.trainer.sample(z=self._grid_z)
        write_safely(self.folder / "samples" / f"step_{step:06d}.png", lambda file: write_grid(file, images))
        if self._writer is not None:
            self._writer.add_images("samples", (images.float() + 1) / 2, step)

    def _report_coverage(self) -> None:
        """Measure and write class coverage; whatever goes wrong is one line, as the training is finished and saved."""
        labels = self.images.labels
        if not self.config.class_coverage or labels is None or len(labels[labels >= 0].unique()) < 2:
            return
        self._say("measuring class coverage ... (Ctrl-C leaves it out)")
        try:
            coverage = self._measure_coverage(labels)
            record = {name: _json_number(v) if isinstance(v, float) else v for name, v in asdict(coverage).items()}
            write_bytes_safely(self.folder / "class_coverage.json", json.dumps(record, indent=2) + "\n")
            self._say(str(coverage))
        except KeyboardInterrupt:
            self._say("class coverage was interrupted; the training is finished and saved")
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            self._say(f"no class coverage: {reason}; the training is finished and saved")

    def _measure_coverage(self, labels: torch.Tensor) -> Coverage:
        # Of a seed that training's latents do not use.
        seed = (self.config.train.seed + 1) % 2**63
        samples = self.trainer.sample(_COVERAGE_SAMPLES, seed=seed).cpu()
        with tqdm(total=100, desc="class coverage", unit="%", disable=not sys.stderr.isatty()) as bar:

            def on_progress(share: float) -> None:
                bar.update(int(100 * share) - bar.n)

            return class_coverage(self.images.images, labels, samples, self.images.class_names, on_progress=on_progress)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"


def _json_number(value: float) -> float | None:
    """Round to what is worth reading; JSON has no NaN."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _measure_threads(
    config: TrainConfig, generator: nn.Module, discriminator: nn.Module, images: torch.Tensor
) -> ThreadChoice:
    """Time steps of a training of copies, so that the one that is to run begins as if none had been made."""
    with torch.random.fork_rng(devices=[]):
        trainer = Trainer(config, copy.deepcopy(generator), copy.deepcopy(discriminator))
        batch = images[: config.batch_size].float() / 127.5 - 1
        return fastest_threads(lambda: trainer.step(batch))


def _load(config: RunConfig) -> ImageData:
    return load_images(
        config.data,
        image_size=config.image_size,
        channels=config.channels,
        bad_files="skip" if config.bad_files == "skip" else "raise",
        max_skipped=config.max_skipped_files,
        min_images=config.train.batch_size,
        progress=sys.stderr.isatty(),
    )


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            'train: expected TensorBoard to be installed for tensorboard, got none; pip install "gan_fast[tensorboard]"'
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
