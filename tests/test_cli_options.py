"""Every option of every command refuses values out of its range, and the message names the option."""

import dataclasses
import os
import subprocess
import sys
import types
import typing

import numpy as np
import pytest
from PIL import Image

from gan_fast import cli
from gan_fast.files import write_safely
from gan_fast.models import DCGANGenerator
from gan_fast.train.checkpoint import save_generator
from gan_fast.train.config import RunConfig, TrainConfig

COMMANDS = {"train": cli.Train, "sample": cli.Sample, "export": cli.Export, "info": cli.Info}

BAD = {
    int: ["-1", "many", "1.5", "", "nan", "99999999999999999999", "-99999999999999999999", "9" * 5000],
    float: ["-1", "many", "", "nan", "inf", "-inf", "1e400", "0x10"],
    str: ["", "nonsense"],
    typing.Literal: ["", "nonsense"],
    bool: ["=3", "="],
    tuple: ["", "nonsense"],
    # An empty path, a file, a path below a file, a name that is too long.
    "out": ["", "{}/file", "{}/file/x", "{}/" + "x" * 300],
}
FROM_ZERO = {"seed", "max_skipped_files"}
NEGATIVE = {"truncation"}
# Values that fail only when they are used; the text of the error then names the option.
TOO_LARGE = {"width": ["1099511627776", "4611686018427387904"], "latent_dim": ["1099511627776", "9223372036854775807"]}


def kind(annotation):
    """Return int, float, str, bool, tuple, Literal or Path; `X | None` counts as X."""
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = (a for a in arguments if a is not type(None))
    return typing.get_origin(annotation) or annotation


def options():
    """Return (command, option, name of its field, its kind) for all options."""
    for command, owner in COMMANDS.items():
        for config in (owner, *((RunConfig, TrainConfig) if command == "train" else ())):
            hints = typing.get_type_hints(config)
            for field in dataclasses.fields(config):
                if field.name not in ("run", "train"):
                    yield command, "--" + field.name.replace("_", "-"), field.name, kind(hints[field.name])


def cases():
    for command, option, name, type_ in options():
        values = BAD["out"] if name == "out" else BAD[type_]
        zero = ["0"] if type_ is int and name not in FROM_ZERO else []
        for value in (*values, *zero, *TOO_LARGE.get(name, ())):
            if not (value == "-1" and name in NEGATIVE):
                yield command, option, value


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a generator, 4 images and an empty file."""
    root = tmp_path_factory.mktemp("place")
    (root / "images").mkdir()
    for index in range(4):
        Image.fromarray(np.full((16, 16), index, dtype=np.uint8)).save(root / "images" / f"{index}.png")
    model = {"latent_dim": 4, "channels": 1, "image_size": 16, "width": 2}
    save_generator(root / "g.safetensors", DCGANGenerator(**model), model)
    write_safely(root / "file", lambda file: None)
    return root


def required(command, place, option):
    """Return the required arguments of a command, without ``option``."""
    pairs = {
        "train": {
            "--data": f"{place}/images",
            "--out": f"{place}/run",
            "--steps": "1",
            "--image-size": "16",
            "--width": "2",
            "--batch-size": "2",
        },
        "sample": {"": f"{place}/g.safetensors"},
        "export": {"": f"{place}/g.safetensors", "--out": f"{place}/x.onnx"},
        "info": {"--no-check": ""},
    }[command]
    return [word for name, value in pairs.items() if name != option for word in (name, value) if word]


def error_of(capsys, args):
    """Run the command line, check that it exits with code 2, and return what it wrote to stderr."""
    with pytest.raises(SystemExit) as raised:
        cli.main(args)
    error = capsys.readouterr().err
    assert raised.value.code == 2, error
    assert "Traceback" not in error
    return error


def line_of(capsys, args):
    """Return the single line that an error printed by gan_fast itself must have."""
    error = error_of(capsys, args)
    assert len(error.splitlines()) == 1, error
    assert error.startswith("gan-fast: ")
    return error.rstrip()


def text_of_box(error):
    """Return the text of an error that tyro printed in a box."""
    return " ".join(error.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


def test_all_options_are_found():
    assert len(list(options())) > 45


@pytest.mark.parametrize(("command", "option"), sorted({case[:2] for case in cases()}))
def test_value_out_of_range_is_an_error_that_names_the_option(command, option, place, capsys):
    for value in (value for c, o, value in cases() if (c, o) == (command, option)):
        rest = required(command, place, option)
        value = value.format(place)
        words = [option + value] if value.startswith("=") else [option, *([value] * (2 if "betas" in option else 1))]
        error = error_of(capsys, [command, *rest, *words])
        name = option[2:].replace("-", "_")
        if value in TOO_LARGE.get(name, ()):
            assert f" {option} {value}" in error
        elif value == "=3":
            assert "Unrecognized options: 3" in error
        elif error.startswith("gan-fast: "):
            assert error.startswith(f"gan-fast: {option}: "), error
            assert len(error.splitlines()) == 1
        else:
            assert option in text_of_box(error), error
        assert not (place / "run").exists()
        assert not (place / "x.onnx").exists()


def test_grid_with_too_many_pixels_is_an_error(place, capsys):
    line = line_of(capsys, ["sample", str(place / "g.safetensors"), "--n", "300000"])
    assert "--n: expected at most 276168, which fill a grid of 89,478,485 pixels, got 300000" in line


DATA_OUT = ["--data", "digits", "--out", "OUT"]


@pytest.mark.parametrize(
    ("args", "want"),
    [
        (["train", *DATA_OUT, "--stepz", "5"], "Perhaps you meant: --steps INT"),
        (["train", *DATA_OUT, "--lr", "5"], "Perhaps you meant: --d-lr FLOAT"),
        (["train", *DATA_OUT, "--batchsize", "5"], "Perhaps you meant: --batch-size INT"),
        (["trian"], "Unrecognized options: trian"),
        (["train", "--data", "digits", "--out"], "Missing value for argument '--out'"),
        (["train", "--data", "digits"], "Missing from gan-fast train: --out PATH"),
        (["sample"], "Missing from gan-fast sample: PATH Folder of a run"),
        (["train", *DATA_OUT, "--d-betas", "0.5"], "'--d-betas'. Expected 2 values"),
        (["sample", "runs/a", "runs/b"], "Unrecognized options: runs/b"),
        (["train", *DATA_OUT, "--objective", "wgan"], "'--objective'. Expected one of ('minimax', 'non_saturating',"),
        (["train", *DATA_OUT, "--penalty", "r1", "r3"], "invalid choice 'r3' for argument '--penalty'"),
        (["train", *DATA_OUT, "--image-size", "17"], "'--image-size'. Expected one of ('16', '32', '64', '128')"),
        (["dance"], "Available subcommands: train, sample, export, info"),
    ],
)
def test_arguments_that_cannot_be_parsed_are_reported_by_tyro(args, want, capsys):
    assert want in text_of_box(error_of(capsys, args))


def test_options_far_from_any_other_get_no_suggestion(capsys):
    error = error_of(capsys, ["train", *DATA_OUT, "--bogus", "5"])
    assert "Unrecognized options: --bogus" in error
    assert "meant" not in error


@pytest.mark.parametrize(
    ("args", "want"),
    [
        (["train", "--resume"], "--out: expected the folder of a run to resume, got none"),
        (["train", "--data", "x", "--out", ""], "--out: expected a value, got an empty one"),
        (
            ["train", *DATA_OUT, "--update", "one_stage", "--d-steps", "2", "--d-norm", "none"],
            "--d-steps: expected 1 when update is one_stage, got 2",
        ),
        (
            ["train", "--data", "x", "--out", "x", "--update", "one_stage"],
            "--d-norm: expected none (no batch norm) when update is one_stage, got batch",
        ),
        (["train", *DATA_OUT, "--d_lr", "0"], "--d-lr: expected a positive number, got 0.0"),
        (["train", *DATA_OUT, "--penalty", "none", "r1"], "--penalty: expected none or names of penalties"),
    ],
)
def test_values_that_are_not_allowed_are_reported_in_one_line(args, want, capsys):
    assert line_of(capsys, args).startswith(f"gan-fast: {want}")


@pytest.mark.parametrize("out", ["batch_size", "my d_lr run", "d_norm=none", "--out=max_skipped"])
def test_folder_with_the_name_of_an_option_is_printed_unchanged(out, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [out] if out.startswith("--") else ["--out", out]
    name = words[-1].removeprefix("--out=")
    line = line_of(capsys, ["train", *words, "--resume"])
    assert line == f"gan-fast: --out: expected the folder of a run to resume, got {name}, which does not exist"


def test_help_does_not_keep_the_line_breaks_of_the_source(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    # The source breaks the lines after "learning rates," and 'any of "gradient_penalty"'.
    assert "learning rates, device," in text
    assert '"gradient_penalty" (WGAN-GP)' in text


def test_help_of_sample_says_that_a_file_is_replaced(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", "--help"])
    words = capsys.readouterr().out.replace("│", " ").split()
    assert "an existing file is replaced." in " ".join(words)


def test_wrong_instruction_set_is_reported_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "gan_fast", "info"],
        env=os.environ | {"GAN_FAST_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "gan-fast: GAN_FAST_ISA: expected one of baseline, avx2, avx512, got 'sse9'\n"


def test_path_below_a_file_is_an_error(place, capsys):
    line = line_of(capsys, ["sample", str(place / "g.safetensors"), "--out", str(place / "file" / "x.png")])
    assert line.endswith("x.png: its folder is a file")


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"gan-fast {cli.__version__}\n"


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["--version"], ["train", "--step"]])
def test_commands_that_compute_nothing_do_not_import_torch(args):
    code = f"import runpy, sys; sys.argv[1:] = {args}; runpy.run_module('gan_fast', run_name='__main__')"
    code = (
        f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); sys.argv[0] = 'gan-fast'; {code}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize("program", ["gan-fast", "python"])
def test_all_public_names_can_be_imported(program):
    code = (
        f"import sys; sys.argv[0] = {program!r}; import gan_fast; "
        f"assert ('torch' in sys.modules) == {program == 'python'}; "
        "print(all(hasattr(gan_fast, name) for name in gan_fast.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_importing_the_package_registers_the_ops():
    code = "import gan_fast, torch; torch.ops.gan_fast.batch_norm_act_forward"
    subprocess.run([sys.executable, "-c", code], check=True)
