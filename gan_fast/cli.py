"""The command line: ``gan-fast train``, ``sample``, ``export`` and ``info``."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

import torch
import tyro
from tqdm import tqdm

from gan_fast import self_check
from gan_fast.backends import info, requested
from gan_fast.export import to_exported_program, to_onnx
from gan_fast.files import CheckpointError, write_safely
from gan_fast.models import DCGANGenerator
from gan_fast.train.checkpoint import load_generator
from gan_fast.train.config import TrainConfig
from gan_fast.train.loop import TrainingDivergedError, draw_latents, generate
from gan_fast.train.pictures import write_grid
from gan_fast.train.process import keep_freed_memory, set_threads
from gan_fast.train.run import Run, RunConfig

_FAILED, _USAGE = 1, 2
_DESCRIPTION = "Train GANs with fused kernels and look at what they draw."


class _UsageError(Exception):
    """What the user can put right; the message says how."""


@dataclass(frozen=True)
class Train:
    """Train a DCGAN on a data set, in a folder of its own.

    The digits have defaults of their own: see gan-fast train --data digits --help.

    Ctrl-C and SIGTERM finish the step, save and exit; --resume goes on from there, bit for bit on a CPU.
    """

    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes]
    resume: bool = False
    """Continue the run in --out; give the options that it was started with, and --steps where it shall differ."""
    threads: int | None = None
    """CPU threads; unset: as OMP_NUM_THREADS says, else what is fastest of a few steps that are timed first."""

    def __call__(self, command: str) -> int:
        if self.threads is not None and self.threads < 1:
            raise _UsageError(f"train: expected threads at least 1, got {self.threads}")
        set_threads(self.threads)
        keep_freed_memory()
        with _users_errors():
            measure_threads = self.threads is None and "OMP_NUM_THREADS" not in os.environ
            run = Run(self.run, resume=self.resume, measure_threads=measure_threads, say=_say)
        number = run.train()
        if number is None:
            _say(f"done: {self.run.out}")
            return 0
        _say(f"stopped by {signal.Signals(number).name} after step {run.trainer.steps_done}; saved. Go on with:")
        _say(f"  {command if self.resume else f'{command} --resume'}")
        return 128 + number


@dataclass(frozen=True)
class Sample:
    """Draw a grid of images from a trained generator."""

    run: tyro.conf.Positional[Path]
    """A run's folder, or a generator's safetensors file."""
    n: int = 64
    """Number of images."""
    seed: int = 0
    """Of the latents."""
    out: Path | None = None
    """PNG to write; unset: samples.png beside the generator."""
    ema: bool = True
    """From the averaged generator; --no-ema: from the last one."""

    def __call__(self, command: str) -> int:
        if self.out is not None and not self.out.name.lower().endswith(".png"):
            raise _UsageError(f"sample: expected out a .png file, got {self.out}")
        path, generator = _find_generator("sample", self.run, self.ema)
        with _users_errors():
            images = generate(generator, draw_latents(self.n, generator.latent_dim, self.seed))
            out = self.out or path.parent / "samples.png"
            out.parent.mkdir(parents=True, exist_ok=True)
        write_safely(out, lambda file: write_grid(file, images))
        _say(str(out))
        return 0


_SUFFIXES = {"onnx": ".onnx", "exported": ".pt2"}


@dataclass(frozen=True)
class Export:
    """Write a trained generator for programs without gan_fast."""

    run: tyro.conf.Positional[Path]
    """A run's folder, or a generator's safetensors file."""
    out: Path
    """File to write: .onnx, or .pt2 for a program that torch.export.load reads."""
    format: Literal["onnx", "exported"] = "onnx"
    """ONNX, or a program of torch.export."""
    ema: bool = True
    """The averaged generator; --no-ema: the last one."""

    def __call__(self, command: str) -> int:
        suffix = _SUFFIXES[self.format]
        if not self.out.name.lower().endswith(suffix):
            raise _UsageError(f"export: expected out a {suffix} file for format {self.format}, got {self.out}")
        _, generator = _find_generator("export", self.run, self.ema)
        latents = draw_latents(2, generator.latent_dim, 0)
        with _users_errors():
            self.out.parent.mkdir(parents=True, exist_ok=True)
            if self.format == "onnx":
                to_onnx(generator, self.out, latents)
        if self.format == "exported":
            program = to_exported_program(generator, latents)
            write_safely(self.out, lambda file: torch.export.save(program, file))
        _say(str(self.out))
        return 0


def _find_generator(command: str, run: Path, ema: bool) -> tuple[Path, DCGANGenerator]:
    """The generator of a run's folder, or of a file, and where it lies."""
    path = run / ("generator_ema.safetensors" if ema else "generator.safetensors") if run.is_dir() else run
    if not path.exists():
        raise _UsageError(f"{command}: expected run a folder or file with a generator, got {run}: no {path.name}")
    return path, load_generator(path)


@dataclass(frozen=True)
class Info:
    """Tell what serves each op on this machine and why, and check that it computes what it should."""

    check: bool = True
    """Compare each op with PyTorch's own in float64, in some seconds; exit code 1 where one fails."""

    def __call__(self, command: str) -> int:
        _say(info())
        if not self.check:
            return 0
        # Threads that wait for each other would make minutes of the seconds.
        set_threads(None)
        report = self_check.check()
        _say(str(report))
        return 0 if report.ok else _FAILED


# What trains well on the digits in two minutes on two cores. The scans are of 8 x 8 pixels, but at 16 x 16 the
# discriminator is too shallow to see a whole digit; without batch norm, and slower than G, it is no match for G's pace.
_DIGITS = Train(
    RunConfig(
        data=tyro.MISSING,
        out=tyro.MISSING,
        train=TrainConfig(steps=4000, latent_dim=16, d_lr=4e-4, g_lr=1e-3),
        image_size=32,
        width=16,
        d_norm="none",
    ),
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; return where it succeeds.

    Args:
        args: the arguments; None takes the process's own.

    Raises:
        SystemExit: with 2 where the user can put it right, 1 where a run failed otherwise, 130 after Ctrl-C, 143 after
            SIGTERM. The reason is one line on stderr.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        with _users_errors():
            command = _parse(given)
            requested()  # what the environment asks for in vain is said before anything begins
        code = command(shlex.join(["gan-fast", *given]))
    except KeyboardInterrupt:
        code = _end("interrupted", 128 + signal.SIGINT)
    except _UsageError as error:
        code = _end(str(error), _USAGE)
    except (CheckpointError, TrainingDivergedError, OSError) as error:
        code = _end(str(error), _FAILED)
    if code:
        raise SystemExit(code)


def _parse(args: Sequence[str]) -> Train | Sample | Export | Info:
    """Parse with tyro; what it would print in a box over several lines becomes the message of one error."""
    digits = "--data=digits" in args or ("--data", "digits") in itertools.pairwise(args)
    train = tyro.conf.subcommand("train", default=_DIGITS) if digits else tyro.conf.subcommand("train")
    # A union of annotated types; `|` on them needs Python 3.11.
    commands = Union[  # noqa: UP007
        Annotated[Train, train],
        Annotated[Sample, tyro.conf.subcommand("sample")],
        Annotated[Export, tyro.conf.subcommand("export")],
        Annotated[Info, tyro.conf.subcommand("info")],
    ]
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(commands, prog="gan-fast", description=_DESCRIPTION, args=args)
    except SystemExit as error:
        if not error.code:
            raise
        lines = [line.strip("│╭╮╰╯ ") for line in box.getvalue().splitlines()]
        # A title, what is wrong, a rule, advice. On a terminal without box drawing the title has a rule under it too.
        below_title = itertools.dropwhile(_is_rule, lines[1:])
        text = " ".join(itertools.takewhile(lambda line: not _is_rule(line), below_title)) or " ".join(lines)
        text = re.sub(r"^Error parsing \S+: ", "", text)
        # Of missing arguments tyro gives the help too, which ends in this word.
        text = "; ".join(part.strip(" .") for part in text.split("(required)") if part.strip())
        command = next((f" {a}" for a in args[:1] if a in ("train", "sample", "export", "info")), "")
        raise _UsageError(f"{text} (see gan-fast{command} --help)") from None


def _is_rule(line: str) -> bool:
    return not line.strip("─-")


@contextlib.contextmanager
def _users_errors() -> Iterator[None]:
    """Where options and data are read, what is wrong is for the user to mend; elsewhere it is a fault of ours."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise _UsageError(str(error)) from error


def _say(line: str) -> None:
    # Through tqdm, so that a line does not tear a running bar.
    tqdm.write(line, file=sys.stdout)


def _end(message: str, code: int) -> int:
    print(f"gan-fast: {' '.join(message.split())}", file=sys.stderr)
    return code
