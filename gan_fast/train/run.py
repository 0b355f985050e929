"""Train in a folder, as ``gan-fast train`` does. Messages name the options of the command line."""

from __future__ import annotations

import copy
import json
import logging
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
from tqdm.contrib.logging import logging_redirect_tqdm

from gan_fast import backends
from gan_fast.data import DataError, ImageData, load_images
from gan_fast.data.errors import quoted
from gan_fast.data.memory import available_bytes, in_words
from gan_fast.files import previous_of, write_bytes_safely, write_safely
from gan_fast.metrics import Coverage, class_coverage
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, save_generator
from gan_fast.train.config import CHANGEABLE, RunConfig, RunError, TrainConfig, option_of, read_record
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
# Seconds between two progress lines where no terminal shows a progress bar.
_LINE_EVERY_S = 30.0
# In a shorter training, measuring the threads would take too large a part of the time.
_MIN_STEPS_TO_MEASURE = 200
# In training, G has weights, average, gradient and two moments; D has all but the average.
_TENSORS_PER_WEIGHT = {"generator": 5, "discriminator": 4}
# Names in messages of load_images, and the options of the command line that set them.
_OPTIONS_OF_DATA = {
    'bad_files="skip"': "--bad-files skip",
    "max_skipped=": "--max-skipped-files ",
    "batch_size": "--batch-size",
    "image_size": "--image-size",
}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each option that differs, as the command line spells it."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [
        f"{option_of(name)}: the run has {_spelled(name, before.get(name))}, "
        f"the command {_spelled(name, now.get(name))}"
        for name in names
    ]


def _spelled(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return option_of(name if value else f"no_{name}")
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "no value" if value is None else str(value)


class Run:
    """A training and its folder. docs/runs.md describes the files in it.

    The folder is locked from the construction of this object to the end of :meth:`train`.

    Args:
        config: the settings.
        resume: continue the run in the folder.
        allow_changed_data: allow that a resumed run gets other images or labels than it was started with.
        measure_threads: on a CPU, time a few steps of a new run and set the fastest number of threads.
        command: the command line, for history.jsonl.
        lock: a lock on the folder from :func:`gan_fast.train.lock.hold_folder`; None: the folder is locked here.
        say: called with each line of progress, warnings and results.

    Attributes:
        trainer: the trainer.
        images: the data.

    Raises:
        FolderInUseError: another training uses the folder.
        RunError: ``resume`` does not match the content of the folder; options or data of a resumed run differ from
            those it was started with; the data cannot be read; the networks do not fit in memory; TensorBoard is
            requested but not installed.
        ConfigError: the device does not exist on this machine.
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
            _summary_writer(self.folder)  # raises before the images are read
        ignored = config.options_without_effect()
        if ignored and not resume:
            self._say(f"warning: options without effect: {', '.join(ignored)}")
        self._record = self._check_options() if resume else {}
        self._rows = self._read_rows() if resume else []
        device = device_of(config.train)
        backends.check_requested(device.type)
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
        # A resumed run keeps its number of threads, because another number rounds sums differently.
        if measure_threads and device.type == "cpu" and not resume and config.train.steps >= _MIN_STEPS_TO_MEASURE:
            self._say(str(_measure_threads(config.train, generator, discriminator, self.images.images)))
        self.trainer = Trainer(config.train, generator, discriminator, self.images)
        self._grid_z = draw_latents(_GRID_IMAGES, self._model["latent_dim"], config.train.seed)
        self._checkpointed_step = 0
        if resume:
            self._resume()
        self._prepare_folder(command)
        self._saved = self._checkpoint_status()

    def train(self, minutes: float | None = None) -> int | None:
        """Train until all steps are done, a time limit is reached, or SIGINT, SIGTERM or SIGHUP arrives.

        Then save everything and unlock the folder.

        Args:
            minutes: stop after the first step that ends later than this; None: no time limit.

        Returns:
            The number of the signal that stopped the training, or None.

        Raises:
            TrainingDivergedError: gradients or weights are not finite; the last checkpoint is unchanged.
            FileError: a file cannot be saved.
            RunError: this object has trained before, and another one has trained in the folder since.
        """
        self._hold_folder()
        try:
            steps_before, steps = self.trainer.steps_done, self.config.train.steps
            if steps_before == steps:
                self._say(f"this run has finished all of its {steps} steps; a larger --steps continues it")
            number = self._train(minutes)
            measured = steps_before == steps and (self.folder / "class_coverage.json").exists()
            if number is None and self.trainer.steps_done == steps and not measured:
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
            watched = _is_watched()
            bar = stack.enter_context(
                tqdm(
                    total=config.steps,
                    initial=trainer.steps_done,
                    desc="train",
                    unit="step",
                    mininterval=0.2,
                    disable=not watched,
                )
            )
            if watched:
                # Log records and Python warnings go through tqdm, so that they do not end up on the line of the bar.
                stack.enter_context(logging_redirect_tqdm())
                logging.captureWarnings(True)
                stack.callback(logging.captureWarnings, False)
            received = stack.enter_context(stopping_signals(trainer.stop))
            names = [name for name in LOGGED if name != "penalty" or config.penalty]
            next_line_s, unsaid = time.monotonic() + _LINE_EVERY_S, ""

            def on_log(row: dict[str, float]) -> None:
                nonlocal next_line_s, unsaid
                row["time_s"] += earlier_s
                self._rows.append({name: _json_number(value) for name, value in row.items()})
                metrics.write(json.dumps(self._rows[-1]) + "\n")
                metrics.flush()
                shown = {name: f"{row[name]:.3g}" for name in names} | {"images/s": f"{row['images_per_s']:.0f}"}
                bar.set_postfix(shown, refresh=False)
                values = ", ".join(f"{name} {value}" for name, value in shown.items())
                unsaid = f"step {row['step']} of {config.steps}: {values}"
                if not watched and time.monotonic() >= next_line_s:
                    self._say(unsaid)
                    next_line_s, unsaid = time.monotonic() + _LINE_EVERY_S, ""
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
            if unsaid:
                self._say(unsaid)
            # Save inside the block, so that the first Ctrl-C does not interrupt it; a second one may.
            if trainer.steps_done != self._checkpointed_step:
                self._save_state()
            self._save_samples()
            if self._rows:
                write_safely(self.curves, lambda file: write_curves(file, self._rows))
        return received.number

    @property
    def sample_grid(self) -> Path:
        """The file of the sample grid of the current step; it exists after :meth:`train`."""
        return self.folder / "samples" / f"step_{self.trainer.steps_done:06d}.png"

    @property
    def curves(self) -> Path:
        """The file of the training curves; it exists after :meth:`train` if there are rows of metrics."""
        return self.folder / "curves.png"

    def _hold_folder(self) -> None:
        """Lock the folder again if an earlier :meth:`train` has unlocked it."""
        if self._lock.release.alive:
            return
        self._lock = hold_folder(self.folder, resume=True, warn=self._say)
        if self._checkpoint_status() != self._saved:
            self._lock.release()
            raise RunError(
                f"--out: expected {self.folder} as this run left it, got a newer checkpoint; make a new Run with resume"
            )

    def _checkpoint_status(self) -> tuple[int, int] | None:
        if not self._checkpoint.exists():
            return None
        status = self._checkpoint.stat()
        return status.st_ino, status.st_mtime_ns

    def _check_options(self) -> dict[str, Any]:
        """Return the run's record; raise if options differ that must not change, and report the others."""
        record = read_record(self.folder)
        # Options that did not exist when the run was started have their defaults, which change nothing.
        before, now = RunConfig.from_flat(record["config"], self.folder).flat(), self.config.flat()
        binding = _binding_difference(before, now)
        if binding:
            raise RunError(
                f"--resume: expected the options that {self.folder} was started with, got {'; '.join(binding)}; "
                "leave them out, or start a new run in another folder"
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
                f"--data: expected the images of the run, got {quoted(data)}, which does not exist; "
                "if they were moved, set --data to their new path"
            )
        try:
            return load_images(
                data,
                image_size=self.config.image_size,
                channels=self.config.channels,
                bad_files=self.config.bad_files,
                max_skipped=self.config.max_skipped_files,
                min_images=1 if resume else self.config.train.batch_size,
                progress=_is_watched(),
            )
        except DataError as error:
            raise RunError(f"--data: {_in_options(str(error), quoted(data))}") from error

    def _check_data(self, allow_changed: bool) -> None:
        """Compare the data with those that the run was started with; raise if they differ and must not."""
        before, images_before = self._record.get("data_fingerprint"), self._record.get("images")
        count = len(self.images.images)
        if before is None and images_before in (None, count):
            self._say("warning: config.json has no fingerprint of the data, so a change of the data cannot be noticed")
            return
        if before == self.images.fingerprint:
            return
        reason = f"the run was started with {images_before} images, and there are {count} now"
        if images_before == count:
            decoders = (self._record.get("versions", {}).get("pillow"), versions()["pillow"])
            reason = "the number of images is the same, but pixels or labels differ"
            if None not in decoders and decoders[0] != decoders[1]:
                reason += f" (decoded by Pillow {decoders[0]} then and {decoders[1]} now)"
        if not allow_changed:
            raise RunError(
                f"--data: expected the images that {self.folder} was started with, got others in "
                f"{quoted(self.config.data)}: {reason}; set --data to the right path, or accept the change with "
                "--allow-changed-data"
            )
        if count < self.config.train.batch_size:
            raise RunError(
                f"--data: expected at least {self.config.train.batch_size} images, one batch of this run, got {count}"
            )
        self._say(f"changed: --data: {reason}")

    def _make_networks(self, device: torch.device) -> tuple[DCGANGenerator, DCGANDiscriminator]:
        config, model = self.config, self._model
        sizes = f"--width {config.width} and --latent-dim {model['latent_dim']}"

        def make() -> tuple[DCGANGenerator, DCGANDiscriminator]:
            return (
                DCGANGenerator(**model),
                DCGANDiscriminator(model["channels"], config.image_size, config.width, config.d_norm),
            )

        try:
            # Count bytes on the meta device first: the kernel may grant memory and kill the process when it is used.
            with torch.device("meta"):
                needed = sum(map(_training_bytes, make(), _TENSORS_PER_WEIGHT.values()))
            available = available_bytes()
            if device.type == "cpu" and available is not None and needed > available:
                raise RunError(
                    f"train: expected networks that fit in memory, got {sizes}: training them takes "
                    f"{in_words(needed)}, and {in_words(available)} are available"
                )
            torch.manual_seed(config.train.seed)
            networks = make()
            # Convolutions are faster in this layout. On a CPU the models convert only activations.
            if device.type != "cpu":
                for network in networks:
                    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Sizes that overflow 64 bits raise exceptions of several types.
        except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(f"train: expected networks that fit in memory, got {sizes}: {reason}") from error
        return networks

    def _prepare_folder(self, command: str | None) -> None:
        (self.folder / "samples").mkdir(exist_ok=True)
        # Rewrite the file: rows of steps that are trained again would otherwise appear twice.
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
            self._say("this run has no checkpoint yet; starting at step 0")
        else:
            self._load_state(load_checkpoint(self._checkpoint, warn=self._say))
            self._checkpointed_step = self.trainer.steps_done
            if self.config.train.steps < self.trainer.steps_done:
                raise RunError(
                    f"--steps: expected at least the {self.trainer.steps_done} steps that {self.folder} has done, "
                    f"got {self.config.train.steps}"
                )
            self._say(f"resuming at step {self.trainer.steps_done}")
        self._rows = [row for row in self._rows if row["step"] <= self.trainer.steps_done]

    def _load_state(self, checkpoint: Mapping[str, Any]) -> None:
        # config.json has no hash; comparing it with the copy in the checkpoint detects damage.
        try:
            before = RunConfig.from_flat(json.loads(checkpoint["config"]), self.folder).flat()
            now = self.config.flat()
            damaged = [option_of(name) for name in now if name not in CHANGEABLE and before.get(name) != now[name]]
            if damaged:
                raise ValueError(f"they differ in {', '.join(damaged)}")
            self.trainer.load_state_dict(checkpoint["trainer"])
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{self._checkpoint}: does not belong to the run in config.json: {reason}") from error

    def _skipped_files(self) -> list[str]:
        skipped = self.images.skipped
        lines = [f"skipped {file}" for file in skipped[:_SHOWN_FILES]]
        return lines + [f"... and {len(skipped) - _SHOWN_FILES} more"] * (len(skipped) > _SHOWN_FILES)

    def _read_rows(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl; skips lines that are damaged or were truncated by a kill."""
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
                f"the checkpoint of step {self._checkpointed_step} is kept"
            )
        state = self.trainer.state_dict()
        save_checkpoint(self._checkpoint, {"trainer": state, "config": json.dumps(self.config.flat())})
        save_generator(self.folder / "generator.safetensors", self.trainer.generator, self._model)
        save_generator(self.folder / "generator_ema.safetensors", self.trainer.ema_generator, self._model)
        self._checkpointed_step = self.trainer.steps_done

    def _save_samples(self) -> None:
        images = self.trainer.sample(z=self._grid_z)
        write_safely(self.sample_grid, lambda file: write_grid(file, images))
        if self._writer is not None:
            self._writer.add_images("samples", (images.float() + 1) / 2, self.trainer.steps_done)

    def _report_coverage(self) -> None:
        """Measure and write class coverage. Errors are reported in one line, because the training is already saved."""
        labels = self.images.labels
        if not self.config.class_coverage or labels is None or len(labels[labels >= 0].unique()) < 2:
            return
        self._say("measuring class coverage (press Ctrl-C to skip it)")
        try:
            coverage = self._measure_coverage(labels)
            record = {name: _json_number(v) if isinstance(v, float) else v for name, v in asdict(coverage).items()}
            write_bytes_safely(self.folder / "class_coverage.json", json.dumps(record, indent=2) + "\n")
            self._say(str(coverage))
        except KeyboardInterrupt:
            self._say("class coverage was skipped; the training is finished and saved")
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            self._say(f"class coverage cannot be measured: {reason}; the training is finished and saved")

    def _measure_coverage(self, labels: torch.Tensor) -> Coverage:
        # Another seed than that of the training latents.
        seed = (self.config.train.seed + 1) % 2**63
        samples = self.trainer.sample(_COVERAGE_SAMPLES, seed=seed).cpu()
        with tqdm(total=100, desc="class coverage", unit="%", disable=not _is_watched()) as bar:

            def on_progress(share: float) -> None:
                bar.update(int(100 * share) - bar.n)

            return class_coverage(self.images.images, labels, samples, self.images.class_names, on_progress=on_progress)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"


def _in_options(text: str, data: str) -> str:
    """Replace arguments of load_images in its error message by options; ``data`` in it is left unchanged."""
    parts = text.removeprefix("load_images: ").split(data)
    for argument, option in _OPTIONS_OF_DATA.items():
        parts = [part.replace(argument, option) for part in parts]
    return data.join(parts).replace("expected source ", "expected ", 1)


def _binding_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return difference(*({k: v for k, v in options.items() if k not in CHANGEABLE} for options in (before, now)))


def _training_bytes(network: nn.Module, tensors_per_weight: int) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters()) * tensors_per_weight


def _is_row(row: Any) -> bool:
    """Whether a line of metrics.jsonl has the fields that :meth:`Run.train` writes."""
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return False
    return isinstance(row.get("time_s"), (int, float)) and all(
        name in row and isinstance(row[name], (int, float, type(None))) for name in LOGGED
    )


def _is_watched() -> bool:
    """Whether stderr is a terminal, which can show progress bars."""
    return sys.stderr is not None and sys.stderr.isatty()


def _json_number(value: float) -> float | None:
    """Round to 6 digits; NaN and infinity, which JSON does not have, become None."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _measure_threads(
    config: TrainConfig, generator: nn.Module, discriminator: nn.Module, images: torch.Tensor
) -> ThreadChoice:
    """Time steps with copies of the networks and of the random state, so that the training itself is not affected."""
    with torch.random.fork_rng(devices=[]):
        trainer = Trainer(config, copy.deepcopy(generator), copy.deepcopy(discriminator))
        batch = images[: config.batch_size].float() / 127.5 - 1
        return fastest_threads(lambda: trainer.step(batch))


def _summary_writer(run: Path) -> Callable[[], Any]:
    """Return a function that creates the TensorBoard writer of a run; raise now if TensorBoard cannot be used."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            '--tensorboard: expected TensorBoard to be installed, got none; run: pip install "gan_fast[tensorboard]"'
        ) from error
    folder = os.fspath(run / "tensorboard")
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise RunError(
            f"--out: expected a folder whose name is UTF-8 for --tensorboard, got {run}; rename it, or leave out "
            "--tensorboard"
        ) from error
    return partial(SummaryWriter, folder)
