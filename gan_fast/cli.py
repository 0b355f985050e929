"""The command line: ``gan-fast train``, ``sample``, ``export`` and ``info``.

Only commands that compute import torch, so that --help and errors in the options do not have to wait for it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import io
import math
import os
import shlex
import signal
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from gan_fast.field_docs import field_texts
from gan_fast.files import FileError
from gan_fast.train.config import ConfigError, RunConfig, TrainConfig, option_of, read_record
from gan_fast.train.lock import FolderLock, hold_folder
from gan_fast.version import __version__

if TYPE_CHECKING:
    from gan_fast.train.trained import TrainedGenerator

_FAILED, _USAGE = 1, 2
_DESCRIPTION = "Train GANs with fused kernels and sample from them. gan-fast --version prints the version."
_MAX_THREADS = 1024
# Pillow warns of a decompression bomb when it opens a larger image, and gan_fast's own reader refuses it.
_MAX_GRID_PIXELS = 89_478_485
_GRID_GAP_PIXELS = 2


class _UsageError(Exception):
    """An error that the user can correct; the message says how."""


@dataclass(frozen=True)
class Train:
    """Train a DCGAN on images. All results are written to the folder --out.

    The defaults for --data digits differ: see gan-fast train --data digits --help.

    Ctrl-C, SIGTERM or a closed terminal (SIGHUP): the current step is finished and saved.

    To continue, with bit-identical results on a CPU: gan-fast train --out DIR --resume
    """

    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes]
    resume: bool = False
    """Continue the run in --out with the options it was started with. Options that may change: --steps, learning rates,
    device, threads, intervals, and the path of the data."""
    allow_changed_data: bool = False
    """With --resume: accept that the images or labels have changed since the run was started."""
    minutes: float | None = None
    """Stop, save and exit after this many minutes of training. Unset: train all steps."""
    threads: int | None = None
    """CPU threads. Unset: the number of the resumed run, or OMP_NUM_THREADS, or the fastest number in a short
    measurement."""

    def __call__(self, command: str) -> int:
        if self.threads is not None and not 1 <= self.threads <= _MAX_THREADS:
            raise _UsageError(f"--threads: expected 1 to {_MAX_THREADS}, got {self.threads}")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise _UsageError(f"--minutes: expected a positive number, got {self.minutes}")
        if self.allow_changed_data and not self.resume:
            _say("warning: options without effect: --allow-changed-data (needs --resume)")
        config = dataclasses.replace(self.run, data=os.path.expanduser(self.run.data), out=_expanded(self.run.out))
        with _user_errors():
            # Lock the folder before torch is imported, so that the first of two concurrent starts gets the folder.
            lock = hold_folder(config.out, resume=self.resume, warn=_say)
        with lock:
            return self._train(config, lock, command)

    def _train(self, config: RunConfig, lock: FolderLock, command: str) -> int:
        _check_backend()
        from gan_fast.train.process import keep_freed_memory, set_threads
        from gan_fast.train.run import Run

        with _user_errors():
            set_threads(self.threads or (_threads_of(config.out) if self.resume else None))
            keep_freed_memory()
            run = Run(
                config,
                resume=self.resume,
                allow_changed_data=self.allow_changed_data,
                measure_threads=self.threads is None and "OMP_NUM_THREADS" not in os.environ,
                command=command,
                lock=lock,
                say=_say,
            )
        number = run.train(self.minutes)
        steps_done = run.trainer.steps_done
        if number is None and steps_done == config.train.steps:
            _say(f"done: {config.out}")
            for label, path in (("samples", run.sample_grid), ("curves", run.curves)):
                if path.exists():
                    _say(f"{label}: {path}")
            _say(f"more samples: gan-fast sample {_for_shell(str(config.out))}")
            return 0
        reason = f"--minutes {self.minutes:g}" if number is None else signal.Signals(number).name
        _say(f"stopped at step {steps_done} ({reason}) and saved; to continue, run:")
        _say(f"  gan-fast train --out {_for_shell(str(self.run.out))} --resume")
        return 0 if number is None else 128 + number


def _threads_of(folder: Path) -> int | None:
    """Return the number of CPU threads that a run has used: another number would round sums differently."""
    threads = read_record(folder).get("cpu_threads")
    return min(threads, os.cpu_count() or 1) if isinstance(threads, int) and threads > 0 else None


@dataclass(frozen=True)
class Sample:
    """Draw a grid of images from a trained generator."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, or a generator's .safetensors file."""
    n: int = 64
    """Number of images."""
    seed: int = 0
    """Seed of the latent vectors."""
    truncation: float = 1.0
    """Factor of the latent vectors. Below 1: more typical and less varied images."""
    out: Path | None = None
    """PNG file to write; an existing file is replaced. Unset: samples.png beside the generator."""
    ema: bool = True
    """Use the averaged generator; --no-ema: the last one."""

    def __call__(self, command: str) -> int:
        if self.n < 1:
            raise _UsageError(f"--n: expected at least 1, got {self.n}")
        if not 0 <= self.seed < 2**63:
            raise _UsageError(f"--seed: expected at least 0 and below 2**63, got {self.seed}")
        if not math.isfinite(self.truncation):
            raise _UsageError(f"--truncation: expected a finite number, got {self.truncation}")
        out = None if self.out is None else _output(self.out, ".png", "")
        _check_backend("cpu")
        from gan_fast.files import write_safely
        from gan_fast.train.pictures import write_grid

        trained = _load(self.run, self.ema)
        most = _MAX_GRID_PIXELS // (trained.generator.image_size + _GRID_GAP_PIXELS) ** 2
        if self.n > most:
            raise _UsageError(
                f"--n: expected at most {most}, which fill a grid of {_MAX_GRID_PIXELS:,} pixels, got {self.n}"
            )
        images = trained.sample(self.n, seed=self.seed, truncation=self.truncation)
        out = out or trained.path.parent / "samples.png"
        with _output_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_safely(out, lambda file: write_grid(file, images))
        _say(str(out))
        return 0


_SUFFIXES = {"onnx": ".onnx", "exported": ".pt2"}


@dataclass(frozen=True)
class Export:
    """Write a trained generator to a file that runs without gan_fast."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, or a generator's .safetensors file."""
    out: Path
    """File to write: .onnx, or .pt2 for --format exported."""
    format: Literal["onnx", "exported"] = "onnx"
    """ONNX, or a program for torch.export.load."""
    ema: bool = True
    """Use the averaged generator; --no-ema: the last one."""

    def __call__(self, command: str) -> int:
        out = _output(self.out, _SUFFIXES[self.format], f" for format {self.format}")
        _check_backend("cpu")
        from gan_fast.train.loop import draw_latents

        generator = _load(self.run, self.ema).generator
        latents = draw_latents(2, generator.latent_dim, 0)
        from gan_fast.export import to_exported_program, to_onnx
        from gan_fast.files import write_safely

        with _output_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            if self.format == "onnx":
                with _user_errors():
                    to_onnx(generator, out, latents, output_names=["images"])
            else:
                import torch

                program = to_exported_program(generator, latents)
                write_safely(out, lambda file: torch.export.save(program, file))
        side = generator.image_size
        _say(str(out))
        _say(f"input: latent (batch, {generator.latent_dim}), standard normal")
        _say(f"output: images (batch, {generator.channels}, {side}, {side}), in [-1, 1]")
        return 0


def _check_backend(device_type: str | None = None) -> None:
    """Report an invalid GAN_FAST_BACKEND, GAN_FAST_ISA or backend for a device before the work starts."""
    with _user_errors():
        from gan_fast import backends, ops  # noqa: F401 (ops registers what the backends run)

        backends.requested()
        if device_type is not None:
            backends.check_requested(device_type)


def _expanded(path: Path) -> Path:
    # Shells expand ~ at the start of an argument, but not in --out=~/x.
    return Path(os.path.expanduser(path))


def _output(path: Path, suffix: str, why: str) -> Path:
    """Return the path to write; raise for a folder and for another suffix."""
    path = _expanded(path)
    if not path.name.lower().endswith(suffix):
        raise _UsageError(f"--out: expected a {suffix} file{why}, got {path}")
    with _output_errors(path):
        if path.is_dir():
            raise _UsageError(f"--out: expected a {suffix} file{why}, got the folder {path}")
    return path


@contextlib.contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn errors about the path into usage errors, but not those of a full or failing disk."""
    try:
        yield
    except (OSError, FileError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if isinstance(reason, OSError) and reason.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            # mkdir reports a file in place of the folder as "File exists".
            what = "its folder is a file" if reason.errno == errno.EEXIST else reason.strerror
            raise _UsageError(f"--out: expected a file that can be written, got {path}: {what}") from error
        raise


def _load(run: Path, ema: bool) -> TrainedGenerator:
    from gan_fast.train.trained import load

    try:
        return load(_expanded(run), ema=ema)
    except ValueError as error:
        raise _UsageError(str(error).replace("load: expected run to be", "PATH: expected", 1)) from error


@dataclass(frozen=True)
class Info:
    """Show which kernels run each op on this machine and why, and check their results."""

    check: bool = True
    """Compare each op with PyTorch in float64, which takes some seconds; exit with code 1 if one fails."""

    def __call__(self, command: str) -> int:
        _check_backend()
        from gan_fast import self_check
        from gan_fast.backends import info
        from gan_fast.train.process import set_threads

        _say(info())
        if not self.check:
            return 0
        # With more threads than usable CPUs, the check would take minutes.
        set_threads(None)
        report = self_check.check()
        _say(str(report))
        return 0 if report.ok else _FAILED


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; return normally if it succeeds.

    Args:
        args: the arguments; None: those of the process.

    Raises:
        SystemExit: with code 2 for an error that the user can correct, 1 if a run failed for another reason, 130 after
            Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, and 0 after --help and --version. The reason is on stderr: one
            line, or a box by tyro if the arguments cannot be parsed.

    Notes:
        If stdout or stderr is closed, a broken pipe or on a full disk, the output is lost but the work continues.
    """
    given = list(sys.argv[1:] if args is None else args)
    with _standard_streams() as stdout:
        code, prints_only = 0, given[:1] != ["train"]
        try:
            code = _run(given)
        except SystemExit as end:  # from --help, --version and errors of tyro
            prints_only = True
            if end.code or not stdout.lost_output:
                raise SystemExit(end.code or 0) from None
        # The result of train is files; the result of other commands is what they print.
        if code == 0 and prints_only and stdout.lost_output:
            code = _end("cannot write all of the output to stdout", _FAILED)
    if code:
        raise SystemExit(code)


def _run(given: Sequence[str]) -> int:
    try:
        if given[:1] == ["--version"]:
            _say(f"gan-fast {__version__}")
            raise SystemExit(0)
        with _user_errors():
            command = _parse(given)
        return command(shlex.join(["gan-fast", *given]))
    except KeyboardInterrupt:
        return _end("interrupted", 128 + signal.SIGINT)
    except _UsageError as error:
        return _end(str(error), _USAGE)
    except (FileError, OSError) as error:
        return _end(str(error), _FAILED)
    except Exception as error:
        from gan_fast.train.loop import TrainingDivergedError

        if isinstance(error, TrainingDivergedError):
            return _end(str(error), _FAILED)
        if _is_out_of_memory(error):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return _end(f"out of memory; {_memory_advice(given)} ({reason})", _FAILED)
        raise


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises OutOfMemoryError on a GPU and RuntimeError on a CPU; the former is a RuntimeError too.
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)
    )


def _memory_advice(given: Sequence[str]) -> str:
    if given[0] == "train" and "--resume" in given:
        return "--batch-size and --width of this run cannot change: start a new run with smaller ones"
    return {"train": "use a smaller --batch-size or --width", "sample": "use a smaller --n"}.get(
        given[0], "free memory"
    )


def _digits() -> Train:
    """Return options that train well on the digits in two minutes on two cores.

    The scans have 8 x 8 pixels, but at 16 x 16 the discriminator is too shallow to see a whole digit. Without batch
    norm and with a lower learning rate than the generator it does not get too strong.
    """
    train = TrainConfig(steps=4000, latent_dim=16, d_lr=4e-4, g_lr=1e-3)
    return Train(RunConfig("digits", tyro.MISSING, train=train, image_size=32, width=16, d_norm="none"))


def _train_defaults(args: Sequence[str]) -> Train | None:
    """Return the defaults of train's options: those of the resumed run or of the digits; None: the usual ones."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--out", nargs="?")
    scan.add_argument("--data", nargs="?")
    scan.add_argument("--resume", action=argparse.BooleanOptionalAction)
    # Leave out --resume=value: argparse would reject it with another message than tyro, which parses it later.
    options, _ = scan.parse_known_args([arg for arg in args if not arg.startswith(("--resume=", "--no-resume="))])
    asks_for_help = {"-h", "--help"} & set(args)
    if options.resume and not asks_for_help:
        if not options.out:
            raise _UsageError("--out: expected the folder of a run to resume, got none")
        out = Path(options.out)
        return Train(RunConfig.from_flat(read_record(_expanded(out))["config"], out))
    # Without --data tyro would only say that it is missing.
    if options.out and not options.data and not asks_for_help and not any(a.startswith("--resume") for a in args):
        out = Path(options.out)
        if (_expanded(out) / "config.json").is_file():
            raise _UsageError(f"--out: {out} holds a run; add --resume to continue it")
    return _digits() if options.data == "digits" else None


def _parse(args: Sequence[str]) -> Train | Sample | Export | Info:
    for option, value in zip(["an argument", *args], args):
        name, equals, assigned = value.partition("=")
        # An empty path would mean the current folder; it usually comes from an unset shell variable.
        if not value or (name.startswith("--") and equals and not assigned):
            raise _UsageError(f"{name or option}: expected a value, got an empty one")
    defaults = _train_defaults(args[1:]) if args[:1] == ["train"] else None
    train = tyro.conf.subcommand("train", default=defaults) if defaults else tyro.conf.subcommand("train")
    # Union, because `|` does not work between Annotated types before Python 3.11.
    commands = Union[  # noqa: UP007
        Annotated[Train, train],
        Annotated[Sample, tyro.conf.subcommand("sample")],
        Annotated[Export, tyro.conf.subcommand("export")],
        Annotated[Info, tyro.conf.subcommand("info")],
    ]
    for owner in (Train, RunConfig, TrainConfig, Sample, Export, Info):
        _set_help(owner)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(commands, prog="gan-fast", description=_DESCRIPTION, args=args)
    except SystemExit as end:
        # tyro reports a ConfigError as an error of "train.run.train"; the field's own name is clearer.
        error: BaseException | None = end
        while error is not None and not isinstance(error, ConfigError):
            error = error.__context__
        if error is not None:
            raise error from None
        sys.stderr.write(printed.getvalue())
        raise


def _set_help(owner: type) -> None:
    """Store the texts below the fields where tyro looks for help; it would keep the line breaks of the source."""
    texts = field_texts(owner)
    for f in dataclasses.fields(owner):
        if f.name in texts:
            f.metadata = types.MappingProxyType({"help": texts[f.name]})


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Turn errors that are caused by the options, the data or the environment into usage errors."""
    try:
        yield
    except ConfigError as error:
        raise _UsageError(f"{option_of(error.field)}: {error.problem}") from error
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise _UsageError(str(error)) from error


class _Stream:
    """A standard stream that accepts any text, and ignores a missing reader and a full disk."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.lost_output = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(_displayable(text).encode(encoding, "backslashreplace").decode(encoding))
            if "\n" in text:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        # A reader that closes its pipe, like head, has read all it wants: nothing is lost.
        self.lost_output |= not isinstance(error, BrokenPipeError)
        # Python flushes the buffer again at exit, which would fail again.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextlib.contextmanager
def _standard_streams() -> Iterator[_Stream]:
    """Open closed descriptors, wrap stdout and stderr so that a failed write raises nothing, and yield stdout."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # open returns the lowest free number, which is this one. If it stayed free, a checkpoint could get it, and
            # messages would be written into the checkpoint.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:
        streams = [_Stream(stream or null) for stream in before]
        sys.stdout, sys.stderr = streams
        try:
            yield streams[0]
        finally:
            for stream in streams:
                stream.flush()
            sys.stdout, sys.stderr = before


def _displayable(text: str) -> str:
    """Replace surrogates, which Python uses for bytes of file names that are not UTF-8, by \\xNN."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other surrogates, which no byte was decoded to
        encoded = text.encode("utf-8", "surrogatepass")
    return encoded.decode("utf-8", "backslashreplace")


def _say(line: str) -> None:
    if "tqdm" not in sys.modules:
        print(line)
        return
    from tqdm import tqdm

    # tqdm.write moves a running progress bar out of the way.
    tqdm.write(line, file=sys.stdout)


def _for_shell(word: str) -> str:
    """Quote a word for a shell, in ASCII if stdout cannot show it."""
    try:
        word.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        codes = "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(word))
        return f"$'{codes}'"
    return shlex.quote(word)


def _end(message: str, code: int) -> int:
    print(f"gan-fast: {' '.join(message.split())}", file=sys.stderr)
    return code
