"""A training in a folder: what ``gan-fast train`` runs."""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from gan_fast import backends
from gan_fast.data import ImageData, load_images
from gan_fast.data.memory import available_bytes, in_words
from gan_fast.files import previous_of, write_bytes_safely, write_safely
from gan_fast.metrics import Coverage, class_coverage
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, save_generator
from gan_fast.train.config import FREE, RunConfig, RunError, TrainConfig, read_record
from gan_fast.train.history import start_of, versions
from gan_fast.train.lock import FolderLock, hold_folder
from gan_fast.train.loop import LOGGED, Trainer, TrainingDivergedError, device_of, draw_latents
from gan_fast.train.pictures import write_curves, write_grid
from gan_fast.train.process import ThreadChoice, fastest_threads, stopping_signals

__all__ = ["Run", "RunConfig", "RunError", "difference"]

_LATENT_DIM = 100
_GRID_IMAGES = 64
_COVERAGE_SAMPLES = 1000
_SHOWN_FILES = 5
# In a shorter training the measurement would take too large a share.
_STEPS_WORTH_MEASURING = 200
# In training G has weights, average, gradient and two moments, D all but the average.
_TENSORS_PER_WEIGHT = {"generator": 5, "discriminator": 4}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each option that differs."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name}: the run has {before.get(name)!r}, the command {now.get(name)!r}" for name in names]


class Run:
    """One training and its folder.

    The folder holds config.json, history.jsonl (a line for each start), metrics.jsonl, samples/step_NNNNNN.png,
    curves.png, checkpoint.pt and the one before it, generator.safetensors, generator_ema.safetensors, and
    class_coverage.json where the data have classes. It is locked from here to the end of :meth:`train`.

    Args:
        config: what to train.
        resume: continue the run that is in the folder.
        allow_changed_data: resume on other images or labels than the run was started with.
        measure_threads: on a CPU, time a few steps of a new training and set the number of threads that is fastest.
        command: the command line, for the folder's history.
        lock: on the folder, from :func:`gan_fast.train.lock.hold_folder`; None: taken here.
        say: is told what a person should know, a line at a time.

    Attributes:
        trainer: the training.
        images: the data.

    Raises:
        FolderInUseError: another training uses the folder.
        RunError: the folder holds a run and ``resume`` is not set, or holds none and it is; the run in it was
            configured otherwise, or its data were others; the networks need more memory than there is; TensorBoard is
            asked for and not installed.
        DataError: the data cannot be read.
        CheckpointError: neither checkpoint can be used.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        resume: bool = False,
        allow_changed_data: bool = False,
        measure_threads: bool = False,
        command: str | None = None,
        lock: FolderLock | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config, self.folder, self._say = config, Path(config.out), say
        self._lock = lock or hold_folder(self.folder, resume=resume, warn=say)
        try:
            self._start(resume, allow_changed_data, measure_threads, command)
        except BaseException:
            self._lock.release()
            raise

    def _start(self, resume: bool, allow_changed_data: bool, measure_threads: bool, command: str | None) -> None:
        config = self.config
        if config.tensorboard:
            _summary_writer(self.folder)
        self._record = self._check_options() if resume else {}
        self._rows = self._read_rows() if resume else []
        device = device_of(config.train)
        try:
            backends.uses_kernel("conv2d", device.type)
        except RuntimeError as error:
            raise RunError(f"GAN_FAST_BACKEND: {error}") from error
        self.images = self._load_images(resume)
        if resume:
            self._check_data(allow_changed_data)
        self._say(str(self.images))
        for line in (*self._skipped_files(), *self.images.notes):
            self._say(line)
        self._model = {
            "latent_dim": config.train.latent_dim or _LATENT_DIM,
            "channels": self.images.images.shape[1],
            "image_size": config.image_size,
            "width": config.width,
        }
        generator, discriminator = self._make_networks(device)
        # A resumed run keeps the threads that it had: with others its sums would be rounded otherwise.
        if measure_threads and device.type == "cpu" and not resume and config.train.steps >= _STEPS_WORTH_MEASURING:
            self._say(str(_measure_threads(config.train, generator, discriminator, self.images.images)))
        self.trainer = Trainer(config.train, generator, discriminator, self.images)
        self._grid_z = draw_latents(_GRID_IMAGES, self._model["latent_dim"], config.train.seed)
        self._checkpointed_step = 0
        if resume:
            self._resume()
        self._prepare_folder(command)
        self._saved = self._checkpoint_status()

    def train(self, minutes: float | None = None) -> int | None:
        """Train to the end, for so many minutes, or until SIGINT or SIGTERM; write everything and unlock the folder.

        Args:
            minutes: stop after the first step that ends later than this from now; None: no such limit.

        Returns:
            The number of the signal that ended it early, else None.

        Raises:
            TrainingDivergedError: the gradients or the weights are not finite; the last checkpoint stands.
            FileError: a file could not be saved.
            RunError: this object has trained before, and another has gone on in the folder since.
        """
        self._hold_folder()
        try:
            number = self._train(minutes)
            if number is None and self.trainer.steps_done == self.config.train.steps:
                self._report_coverage()
            self._saved = self._checkpoint_status()
            return number
        finally:
            self._lock.release()

    def _train(self, minutes: float | None) -> int | None:
        config, trainer = self.config.train, self.trainer
        earlier_s = self._rows[-1]["time_s"] if self._rows else 0.0
        end_s = math.inf if minutes is None else time.monotonic() + 60 * minutes
        with ExitStack() as stack:
            self._writer = None
            if self.config.tensorboard:
                self._writer = _summary_writer(self.folder)()
                stack.callback(self._writer.close)
            metrics = stack.enter_context(open(self.folder / "metrics.jsonl", "a", encoding="utf-8"))
            # Where nobody watches, a line now and then is enough.
            bar = stack.enter_context(
                tqdm(
                    total=config.steps,
                    initial=trainer.steps_done,
                    desc="train",
                    unit="step",
                    mininterval=0.2 if _is_watched() else 30.0,
                    disable=sys.stderr is None,
                )
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
                if time.monotonic() >= end_s:
                    trainer.stop()

            trainer.fit(on_log, on_step)
            # Inside the block: a second Ctrl-C may end the program at once, but the first one's save is not disturbed.
            if trainer.steps_done != self._checkpointed_step:
                self._save_state()
            self._save_samples()
            if self._rows:
                write_safely(self.folder / "curves.png", lambda file: write_curves(file, self._rows))
        return received.number

    def _hold_folder(self) -> None:
        """Lock the folder again where an earlier :meth:`train` has unlocked it."""
        if self._lock.release.alive:
            return
        self._lock = hold_folder(self.folder, resume=True, warn=self._say)
        if self._checkpoint_status() != self._saved:
            self._lock.release()
            raise RunError(
                f"train: expected {self.folder} as this run left it, got a newer checkpoint; make a new Run with resume"
            )

    def _checkpoint_status(self) -> tuple[int, int] | None:
        if not self._checkpoint.exists():
            return None
        status = self._checkpoint.stat()
        return status.st_ino, status.st_mtime_ns

    def _check_options(self) -> dict[str, Any]:
        """Return the run's record, of which only what is free may differ from the configuration."""
        record = read_record(self.folder)
        # Options that were not there yet when the run was started did what their defaults do.
        before, now = RunConfig.from_flat(record["config"], self.folder).flat(), self.config.flat()
        binding = _binding_difference(before, now)
        if binding:
            raise RunError(
                f"train: expected the options that {self.folder} was started with, got {'; '.join(binding)}; "
                "leave them out, or start another run in another folder"
            )
        for options in (before, now):
            options["data"] = os.path.realpath(options["data"])
        for line in difference(before, now):
            self._say(f"changed: {line}")
        return record

    def _load_images(self, resume: bool) -> ImageData:
        data = self.config.data
        if resume and data != "digits" and not os.path.exists(data):
            raise RunError(
                f"train: expected data the images of the run, got {data!r}, which does not exist; "
                "name the place where they are now with --data"
            )
        return _load(self.config)

    def _check_data(self, allow_changed: bool) -> None:
        """Compare the data with those that the run was started with."""
        before, images_before = self._record.get("data_fingerprint"), self._record.get("images")
        count = len(self.images.images)
        if before is None and images_before in (None, count):
            self._say("config.json has no fingerprint of the data: they are taken to be those of the run")
            return
        if before == self.images.fingerprint:
            return
        reason = f"the run had {images_before} images, the data have {count}"
        if images_before == count:
            decoders = (self._record.get("versions", {}).get("pillow"), versions()["pillow"])
            reason = "as many images, but other pixels or labels"
            if None not in decoders and decoders[0] != decoders[1]:
                reason += f" (decoded by Pillow {decoders[0]} then and {decoders[1]} now)"
        if not allow_changed:
            raise RunError(
                f"train: expected data the images that {self.folder} was started with, got others in "
                f"{self.config.data!r}: {reason}; name the place of the right ones with --data, or go on with these by "
                "--allow-changed-data"
            )
        self._say(f"changed: data: {reason}: not the same run any more")

    def _make_networks(self, device: torch.device) -> tuple[DCGANGenerator, DCGANDiscriminator]:
        config, model = self.config, self._model
        sizes = f"width={config.width} and latent_dim={model['latent_dim']}"

        def make() -> tuple[DCGANGenerator, DCGANDiscriminator]:
            return (
                DCGANGenerator(**model),
                DCGANDiscriminator(model["channels"], config.image_size, config.width, config.d_norm),
            )

        try:
            # Without memory first: an allocation that is granted may end the process when it is used.
            with torch.device("meta"):
                needed = sum(map(_training_bytes, make(), _TENSORS_PER_WEIGHT.values()))
            available = available_bytes()
            if device.type == "cpu" and available is not None and needed > available:
                raise RunError(
                    f"train: expected networks that fit the memory, got {sizes}: training them takes "
                    f"{in_words(needed)}, and this process may take {in_words(available)} more"
                )
            torch.manual_seed(config.train.seed)
            networks = make()
            # The layout that convolutions are quicker in; on a CPU the models see to that, and a weight stays as it is.
            if device.type != "cpu":
                for network in networks:
                    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Sizes that overflow 64 bits have no common exception.
        except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(f"train: expected networks that fit the memory, got {sizes}: {reason}") from error
        return networks

    def _prepare_folder(self, command: str | None) -> None:
        (self.folder / "samples").mkdir(exist_ok=True)
        # Rows of steps that are trained again would appear twice.
        text = "".join(json.dumps(row) + "\n" for row in self._rows)
        write_bytes_safely(self.folder / "metrics.jsonl", text)
        record = {
            "config": self.config.flat(),
            "model": self._model,
            "versions": versions(),
            "device": str(self.trainer.device),
            "cpu_threads": torch.get_num_threads(),
            "images": len(self.images.images),
            "data_fingerprint": self.images.fingerprint,
        }
        write_bytes_safely(self.folder / "config.json", json.dumps(record, indent=2) + "\n")
        history = self.folder / "history.jsonl"
        before = history.read_bytes() if history.exists() else b""
        line = json.dumps(start_of(command, self.trainer.device, self.trainer.steps_done)) + "\n"
        write_bytes_safely(history, before + line.encode())

    def _resume(self) -> None:
        if not self._checkpoint.exists() and not previous_of(self._checkpoint).exists():
            self._say("no checkpoint was written yet: starting at step 0")
        else:
            self._load_state(load_checkpoint(self._checkpoint, warn=self._say))
            self._checkpointed_step = self.trainer.steps_done
            if self.config.train.steps < self.trainer.steps_done:
                raise RunError(
                    f"train: expected steps at least the {self.trainer.steps_done} that {self.folder} has done, "
                    f"got {self.config.train.steps}"
                )
            self._say(f"resuming at step {self.trainer.steps_done}")
        self._rows = [row for row in self._rows if row["step"] <= self.trainer.steps_done]

    def _load_state(self, checkpoint: Mapping[str, Any]) -> None:
        # config.json has no hash of its own; the checkpoint's copy tells a damaged one.
        try:
            before = RunConfig.from_flat(json.loads(checkpoint["config"]), self.folder).flat()
            damage = _binding_difference(before, self.config.flat())
            if damage:
                raise ValueError(f"it differs from config.json in {'; '.join(damage)}")
            self.trainer.load_state_dict(checkpoint["trainer"])
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{self._checkpoint}: not a checkpoint of the run in config.json: {reason}"
            ) from error

    def _skipped_files(self) -> list[str]:
        skipped = self.images.skipped
        lines = [f"skipped {file}" for file in skipped[:_SHOWN_FILES]]
        return lines + [f"... and {len(skipped) - _SHOWN_FILES} more"] * (len(skipped) > _SHOWN_FILES)

    def _read_rows(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl, without lines that a kill has cut short or that are damaged."""
        path = self.folder / "metrics.jsonl"
        rows: list[dict[str, Any]] = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if _is_row(row) and (not rows or row["step"] > rows[-1]["step"]):
                rows.append(row)
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
        with tqdm(total=100, desc="class coverage", unit="%", disable=not _is_watched()) as bar:

            def on_progress(share: float) -> None:
                bar.update(int(100 * share) - bar.n)

            return class_coverage(self.images.images, labels, samples, self.images.class_names, on_progress=on_progress)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"


def _binding_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return difference(*({k: v for k, v in options.items() if k not in FREE} for options in (before, now)))


def _training_bytes(network: nn.Module, tensors_per_weight: int) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters()) * tensors_per_weight


def _is_row(row: Any) -> bool:
    """Whether a line of metrics.jsonl is what :meth:`Run.train` writes."""
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return False
    return isinstance(row.get("time_s"), (int, float)) and all(
        name in row and isinstance(row[name], (int, float, type(None))) for name in LOGGED
    )


def _is_watched() -> bool:
    """Whether a terminal shows the progress."""
    return sys.stderr is not None and sys.stderr.isatty()


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
        progress=_is_watched(),
    )


def _summary_writer(run: Path) -> Callable[[], Any]:
    """Return a function that makes TensorBoard's writer for a run; what stands in its way is an error now."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            'train: expected TensorBoard to be installed for tensorboard, got none; pip install "gan_fast[tensorboard]"'
        ) from error
    folder = os.fspath(run / "tensorboard")
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise RunError(
            f"train: expected out a folder whose name is UTF-8 for tensorboard, got {run}; rename it, or leave "
            "TensorBoard out"
        ) from error
    return partial(SummaryWriter, folder)
