"""The command line: ``gan-fast train``, ``sample``, ``export`` and ``info``.

torch is imported by the commands that compute, so that --help and errors in the options do not wait for it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import errno
import io
import itertools
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from gan_fast.files import FileError
from gan_fast.train.config import RunConfig, TrainConfig, read_record
from gan_fast.train.lock import FolderLock, hold_folder
from gan_fast.version import __version__

if TYPE_CHECKING:
    from gan_fast.models import DCGANGenerator

_FAILED, _USAGE = 1, 2
_DESCRIPTION = "Train GANs with fused kernels and look at what they draw. gan-fast --version prints the version."
_MAX_THREADS = 1024
# Above it Pillow warns of a decompression bomb when it opens the grid, and gan_fast's own reader refuses it.
_MAX_GRID_PIXELS = 89_478_485
_GRID_GAP_PIXELS = 2


class _UsageError(Exception):
    """What the user can put right; the message says how."""


@dataclass(frozen=True)
class Train:
    """Train a DCGAN on a data set, in a folder of its own.

    The digits have defaults of their own: see gan-fast train --data digits --help.

    Ctrl-C and SIGTERM finish the step, save and exit; gan-fast train --out DIR --resume goes on from there, bit for bit
    on a CPU.
    """

    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes]
    resume: bool = False
    """Continue the run in --out with the options that it was started with. May be given anew: steps, learning rates,
    device, threads, intervals, and where the data are now."""
    allow_changed_data: bool = False
    """Resume on other images or labels than the run was started with."""
    minutes: float | None = None
    """Stop, save and exit after so many minutes of training; unset: train all steps."""
    threads: int | None = None
    """CPU threads; unset: as the resumed run had or OMP_NUM_THREADS says, else what is fastest of a few timed steps."""

    def __call__(self, command: str) -> int:
        if self.threads is not None and not 1 <= self.threads <= _MAX_THREADS:
            raise _UsageError(f"--threads: expected 1 to {_MAX_THREADS}, got {self.threads}")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise _UsageError(f"--minutes: expected above 0 and finite, got {self.minutes}")
        config = dataclasses.replace(self.run, data=os.path.expanduser(self.run.data), out=_expanded(self.run.out))
        with _users_errors():
            # Before torch is imported, so that the earlier of two starts gets the folder.
            lock = hold_folder(config.out, resume=self.resume, warn=_say)
        with lock:
            return self._train(config, lock, command)

    def _train(self, config: RunConfig, lock: FolderLock, command: str) -> int:
        from gan_fast.train.process import keep_freed_memory, set_threads
        from gan_fast.train.run import Run

        _check_backend()
        with _users_errors():
            set_threads(self.threads or (_threads_of(config.out) if self.resume else None))
            keep_freed_memory()
            run = Run(
                config,
                resume=self.resume,
                allow_changed_data=self.allow_changed_data,
                measure_threads=self.threads is None and "OMP_NUM_THREADS" not in os.environ,
                command=command,
                lock=lock,
                # The other lines hold names of files and classes, which must stay as they are.
                say=lambda line: _say(_in_options(line) if line.startswith("changed: ") else line),
            )
        number = run.train(self.minutes)
        steps_done = run.trainer.steps_done
        if number is None and steps_done == config.train.steps:
            _say(f"done: {config.out}")
            return 0
        reason = f"after {self.minutes:g} minutes" if number is None else f"by {signal.Signals(number).name}"
        _say(f"stopped {reason} after step {steps_done}; saved. Go on with:")
        _say(f"  gan-fast train --out {_for_shell(str(self.run.out))} --resume")
        return 0 if number is None else 128 + number


def _threads_of(folder: Path) -> int | None:
    """Return the CPU threads that a run has used: with another number its sums would round otherwise."""
    threads = read_record(folder).get("cpu_threads")
    return min(threads, os.cpu_count() or 1) if isinstance(threads, int) and threads > 0 else None


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
        if self.n < 1:
            raise _UsageError(f"--n: expected at least 1, got {self.n}")
        if not 0 <= self.seed < 2**63:
            raise _UsageError(f"--seed: expected at least 0 and below 2**63, got {self.seed}")
        out = None if self.out is None else _output(self.out, ".png", "")
        from gan_fast.files import write_safely
        from gan_fast.train.loop import draw_latents, generate
        from gan_fast.train.pictures import write_grid

        _check_backend()
        path, generator = _find_generator("sample", self.run, self.ema)
        most = _MAX_GRID_PIXELS // (generator.image_size + _GRID_GAP_PIXELS) ** 2
        if self.n > most:
            raise _UsageError(
                f"--n: expected at most {most}, which fill a grid of {_MAX_GRID_PIXELS:,} pixels, got {self.n}"
            )
        images = generate(generator, draw_latents(self.n, generator.latent_dim, self.seed))
        out = out or path.parent / "samples.png"
        with _output_errors(out):
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
        out = _output(self.out, _SUFFIXES[self.format], f" for format {self.format}")
        from gan_fast.train.loop import draw_latents

        _check_backend()
        _, generator = _find_generator("export", self.run, self.ema)
        latents = draw_latents(2, generator.latent_dim, 0)
        from gan_fast.export import to_exported_program, to_onnx
        from gan_fast.files import write_safely

        with _output_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            if self.format == "onnx":
                with _users_errors():
                    to_onnx(generator, out, latents, output_names=["images"])
            else:
                import torch

                program = to_exported_program(generator, latents)
                write_safely(out, lambda file: torch.export.save(program, file))
        size = generator.image_size
        _say(f"{out}: latent (N, {generator.latent_dim}) -> images (N, {generator.channels}, {size}, {size})")
        return 0


def _check_backend() -> None:
    """Report a wrong GAN_FAST_BACKEND before anything begins."""
    from gan_fast.backends import requested

    with _users_errors():
        requested()


def _expanded(path: Path) -> Path:
    # Shells expand ~ at the start of an argument, not in --out=~/x.
    return Path(os.path.expanduser(path))


def _output(path: Path, suffix: str, why: str) -> Path:
    """Return the path to write; refuse another suffix, and a folder."""
    path = _expanded(path)
    if not path.name.lower().endswith(suffix):
        raise _UsageError(f"--out: expected a {suffix} file{why}, got {path}")
    with _output_errors(path):
        if path.is_dir():
            raise _UsageError(f"--out: expected a {suffix} file{why}, got the folder {path}")
    return path


@contextlib.contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn errors of the path into usage errors; a full or failing disk is none."""
    try:
        yield
    except (OSError, FileError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if isinstance(reason, OSError) and reason.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            raise _UsageError(f"--out: expected a file that can be written, got {path}: {reason.strerror}") from error
        raise


def _find_generator(command: str, run: Path, ema: bool) -> tuple[Path, DCGANGenerator]:
    """The generator of a run's folder, or of a file, and where it lies."""
    from gan_fast.train.checkpoint import load_generator

    run = _expanded(run)
    with _users_errors():
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
        from gan_fast import self_check
        from gan_fast.backends import info
        from gan_fast.train.process import set_threads

        _check_backend()
        _say(info())
        if not self.check:
            return 0
        # Threads that wait for each other would make minutes of the seconds.
        set_threads(None)
        report = self_check.check()
        _say(str(report))
        return 0 if report.ok else _FAILED


_COMMANDS: dict[str, type[Train | Sample | Export | Info]] = {
    "train": Train,
    "sample": Sample,
    "export": Export,
    "info": Info,
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; return where it succeeds.

    Args:
        args: the arguments; None takes the process's own.

    Raises:
        SystemExit: with 2 where the user can put it right, 1 where a run failed otherwise, 130 after Ctrl-C, 143 after
            SIGTERM. The reason is one line on stderr. With 0 after --help and --version.

    Notes:
        A closed stream, a broken pipe and a full disk behind stdout or stderr lose what is written there, and end
        nothing.
    """
    given = list(sys.argv[1:] if args is None else args)
    with _standard_streams() as stdout:
        code, trained = 0, given[:1] == ["train"]
        try:
            code = _run(given)
        except SystemExit as end:  # of --help and --version
            trained = False
            if not stdout.lost_output:
                raise SystemExit(end.code or 0) from None
        # Of a training the files are the result; of the rest it is what they print.
        if code == 0 and not trained and stdout.lost_output:
            code = _end("cannot write all of the output to stdout", _FAILED)
    if code:
        raise SystemExit(code)


def _run(given: Sequence[str]) -> int:
    try:
        if given[:1] == ["--version"]:
            _say(f"gan-fast {__version__}")
            raise SystemExit(0)
        with _users_errors():
            command = _parse(given)
        return command(shlex.join(["gan-fast", *given]))
    except KeyboardInterrupt:
        return _end("interrupted", 128 + signal.SIGINT)
    except _UsageError as error:
        return _end(_in_options(str(error), given), _USAGE)
    except (FileError, OSError) as error:
        return _end(str(error), _FAILED)
    except Exception as error:
        from gan_fast.train.loop import TrainingDivergedError

        if isinstance(error, TrainingDivergedError):
            return _end(_in_options(str(error), given), _FAILED)
        if _is_out_of_memory(error):
            return _end(f"out of memory: lower --batch-size, --width or --n ({str(error).splitlines()[0]})", _FAILED)
        raise


def _is_out_of_memory(error: Exception) -> bool:
    # torch has an exception of its own for a GPU, and a RuntimeError for a CPU.
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)
    )


def _digits() -> Train:
    """What trains well on the digits in two minutes on two cores.

    The scans are of 8 x 8 pixels, but at 16 x 16 the discriminator is too shallow to see a whole digit; without batch
    norm, and slower than G, it is no match for G's pace.
    """
    train = TrainConfig(steps=4000, latent_dim=16, d_lr=4e-4, g_lr=1e-3)
    return Train(RunConfig("digits", tyro.MISSING, train=train, image_size=32, width=16, d_norm="none"))


def _train_defaults(args: Sequence[str]) -> Train | None:
    """Return the values of options that are not given: the resumed run's, or the data set's own; None: the usual."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--out", nargs="?")
    scan.add_argument("--data", nargs="?")
    scan.add_argument("--resume", action=argparse.BooleanOptionalAction)
    options, _ = scan.parse_known_args(args)
    if options.resume and not {"-h", "--help"} & set(args):
        if not options.out:
            raise _UsageError("train: expected --out, the folder of the run to resume, got none")
        out = Path(options.out)
        return Train(RunConfig.from_flat(read_record(_expanded(out))["config"], out))
    return _digits() if options.data == "digits" else None


def _parse(args: Sequence[str]) -> Train | Sample | Export | Info:
    """Parse with tyro; what it would print in a box over several lines becomes the message of one error."""
    _check_words(args)
    defaults = _train_defaults(args[1:]) if args[:1] == ["train"] else None
    train = tyro.conf.subcommand("train", default=defaults) if defaults else tyro.conf.subcommand("train")
    # A union of annotated types; `|` on them needs Python 3.11.
    commands = Union[  # noqa: UP007
        Annotated[Train, train],
        Annotated[Sample, tyro.conf.subcommand("sample")],
        Annotated[Export, tyro.conf.subcommand("export")],
        Annotated[Info, tyro.conf.subcommand("info")],
    ]
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _unwrapped(not {"-h", "--help"} & set(args)):
            return tyro.cli(commands, prog="gan-fast", description=_DESCRIPTION, args=args)
    except SystemExit as error:
        if not error.code:
            raise
    lines = [line.strip("│╭╮╰╯ ") for line in box.getvalue().splitlines()]
    # A title, what is wrong, a rule, advice. On a terminal without box drawing the title has a rule under it too.
    below_title = itertools.dropwhile(_is_rule, lines[1:])
    text = " ".join(itertools.takewhile(lambda line: not _is_rule(line), below_title)) or " ".join(lines)
    # For each missing argument tyro prints its help, which ends in this word.
    text = "; ".join(part.strip(" .") for part in text.split("(required)") if part.strip())
    for pattern, plain in (
        *_TYRO_MESSAGES,
        (r"^Unrecognized options: ", f"{args[0]}: expected no other argument, got "),
    ):
        text = re.sub(pattern, plain, text)
    raise _UsageError(f"{text} ({_see_help(args)})")


_TYRO_MESSAGES = (
    (r"^Error parsing (?!--)\S+: ", ""),
    (r"^Error parsing (--\S+): invalid literal for int\(\) with base 10: ", r"\1: expected an integer, got "),
    (r"^Error parsing (--\S+): could not convert string to float: ", r"\1: expected a number, got "),
    (r"^Error parsing (--\S+): ", r"\1: "),
    (r"^invalid choice (.*) for argument '(--\S+)'\. Expected one of \((.*)\)", r"\2: expected one of \3, got \1"),
    (r"^Missing value for argument '(\S+)'\. Expected 1 values", r"\1: expected a value, got none"),
    (r"^Missing value for argument '(\S+)'\. Expected (\d+) values", r"\1: expected \2 values, got fewer"),
    (r"^Missing from gan-fast (\w+): (.*)", r"\1: expected \2, got none"),
)


@contextlib.contextmanager
def _unwrapped(wanted: bool) -> Iterator[None]:
    """Keep tyro from breaking lines: names in them may hold spaces."""
    before = os.environ.get("COLUMNS")
    if wanted:
        os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        if before is not None:
            os.environ["COLUMNS"] = before
        elif wanted:
            del os.environ["COLUMNS"]


def _check_words(args: Sequence[str]) -> None:
    """Refuse unknown commands and options and empty values; suggest the nearest name."""
    if not args or args[0] in ("-h", "--help"):
        return
    if args[0] not in _COMMANDS:
        near = _nearest(args[0], _COMMANDS)
        raise _UsageError(f"expected a command, one of {', '.join(_COMMANDS)}, got {args[0]!r}{near}")
    options = _options_of(args[0])
    previous = args[0]
    for arg in args[1:]:
        name, equals, value = arg.partition("=")
        if name.startswith("--") and name.replace("_", "-") not in options:
            near = _nearest(name, options)
            raise _UsageError(f"{args[0]}: expected an option of {args[0]}, got {name}{near} ({_see_help(args)})")
        if equals and _option(f"no_{options.get(name.replace('_', '-'), '')}") in options:
            raise _UsageError(f"{name}: expected no value, got {value!r} ({_see_help(args)})")
        if not arg or (equals and not value and name.startswith("--")):
            where = name if equals else previous
            raise _UsageError(f"{where}: expected a value, got an empty one ({_see_help(args)})")
        previous = arg


def _options_of(command: str) -> dict[str, str]:
    """Option -> the field that it sets."""
    options = {"--help": ""}
    kinds: list[Any] = [_COMMANDS[command], *((RunConfig, TrainConfig) if command == "train" else ())]
    for f in itertools.chain.from_iterable(map(dataclasses.fields, kinds)):
        if f.name not in ("run", "train"):
            options[_option(f.name)] = f.name
            if f.type in ("bool", bool):
                options[_option(f"no_{f.name}")] = f.name
    return options


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _nearest(word: str, words: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(word, words, n=3)
    if not near:
        return ""

    def ratio(other: str) -> float:
        return difflib.SequenceMatcher(None, other, word).ratio()

    best = max(map(ratio, near))
    return f"; did you mean {' or '.join(other for other in sorted(near) if ratio(other) == best)}?"


def _see_help(args: Sequence[str]) -> str:
    return "see " + " ".join(("gan-fast", *(a for a in args[:1] if a in _COMMANDS), "--help"))


# Arguments of the library whose option has another name.
_LIBRARY_NAMES = {"source": "data", "max_skipped": "max_skipped_files", "norm": "d_norm"}


def _in_options(text: str, given: Sequence[str] = ()) -> str:
    """Name command-line options where a message of the library names arguments and fields.

    "TrainConfig: expected d_lr in (0, inf), got 0.0" becomes "--d-lr: expected in (0, inf), got 0.0".

    Args:
        text: the message.
        given: the command's arguments, which stay as they are: a folder can have the name of a field.
    """
    fields = {field: option for c in _COMMANDS for option, field in _options_of(c).items() if "--no-" not in option}
    fields |= {name: _option(field) for name, field in _LIBRARY_NAMES.items()}
    name = rf"({'|'.join(sorted(filter(None, fields), key=len, reverse=True))})"

    def option(match: re.Match[str]) -> str:
        return match[0] if match[1] is None else f"{fields[match[1]]}{match[2]}"

    def with_value(match: re.Match[str]) -> str:
        return match[0] if match[1] is None else f"{fields[match[1]]} {match[2]}"

    text = re.sub(rf"^[\w.]+: expected at least {name} = ", lambda m: f"{fields[m[1]]}: expected at least ", text)
    text = re.sub(rf"^[\w.]+: expected {name}(?: to be)? ", lambda m: f"{fields[m[1]]}: expected ", text)
    # Texts in quotes are the user's own.
    quoted, alone = r"(?<!\w)(?:'[^']*'|\"[^\"]*\")", r"(?<![\w/.\\-])"
    values = (value for arg in given for value in (arg, arg.partition("=")[2]) if "_" in value)
    own = "|".join((quoted, *map(re.escape, sorted(values, key=len, reverse=True))))
    text = re.sub(rf"{own}|{alone}{name}(: the run has)", option, text)
    text = re.sub(rf'{own}|{alone}{name}="?(\w+)"?', with_value, text)
    underscored = rf"(?=\w*_){name}()(?![\w/.\\-])"
    return re.sub(rf"{own}|{alone}{underscored}", option, text)


def _is_rule(line: str) -> bool:
    return not line.strip("─-")


@contextlib.contextmanager
def _users_errors() -> Iterator[None]:
    """Where options and data are read, what is wrong is for the user to mend; elsewhere it is a fault of ours."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise _UsageError(str(error)) from error


class _Stream:
    """A standard stream that takes any text, and goes on without a reader or a disk behind it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.lost_output = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            # Names of files may hold characters that the stream's encoding lacks.
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
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
        # A reader that closes its pipe, as head does, has read all that it wants.
        self.lost_output |= not isinstance(error, BrokenPipeError)
        # At exit Python flushes the buffer again, which would fail again.
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
            # open takes the lowest free number, this one. Left free, a checkpoint could get it, and messages with it.
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


def _say(line: str) -> None:
    if "tqdm" not in sys.modules:
        print(line)
        return
    from tqdm import tqdm

    # Through tqdm, so that a line does not tear a running bar.
    tqdm.write(line, file=sys.stdout)


def _for_shell(word: str) -> str:
    """Quote a word for a shell, in ASCII where stdout cannot show it."""
    try:
        word.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        codes = "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(word))
        return f"$'{codes}'"
    return shlex.quote(word)


def _end(message: str, code: int) -> int:
    print(f"gan-fast: {' '.join(message.split())}", file=sys.stderr)
    return code
