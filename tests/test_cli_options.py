"""Every option of every command, as the dataclasses have them, refuses what is out of its range in one line."""

import dataclasses
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

BAD = {
    int: ["-1", "many", "1.5", "", "nan", "99999999999999999999", "-99999999999999999999", "9" * 5000],
    float: ["-1", "many", "", "nan", "inf", "-inf", "1e400", "0x10"],
    str: ["", "nonsense"],
    typing.Literal: ["", "nonsense"],
    bool: ["=3", "="],
    tuple: ["", "nonsense"],
    # A folder, a file, below a file, a name too long.
    "out": ["", "{}/file", "{}/file/x", "{}/" + "x" * 300],
}
# 0 is a value of these.
FROM_ZERO = {"seed", "max_skipped_files"}
# Refused where they are used: the message names them in its text.
UNNAMED = {"width": ["1099511627776", "4611686018427387904"], "latent_dim": ["1099511627776", "9223372036854775807"]}


def kind(annotation):
    """int, float, str, bool, tuple, Literal or a Path, of an option that may be unset."""
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = (a for a in arguments if a is not type(None))
    return typing.get_origin(annotation) or annotation


def options():
    """(command, option, its field's name, its kind) for everything that the command line takes."""
    for command, owner in cli._COMMANDS.items():
        for config in (owner, *((RunConfig, TrainConfig) if command == "train" else ())):
            hints = typing.get_type_hints(config)
            for field in dataclasses.fields(config):
                if field.name not in ("run", "train"):
                    yield command, "--" + field.name.replace("_", "-"), field.name, kind(hints[field.name])


def cases():
    for command, option, name, type_ in options():
        values = BAD["out"] if name == "out" else BAD[type_]
        zero = ["0"] if type_ is int and name not in FROM_ZERO else []
        for value in (*values, *zero, *UNNAMED.get(name, ())):
            yield command, option, value


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a generator, 4 images and a file."""
    root = tmp_path_factory.mktemp("place")
    (root / "images").mkdir()
    for index in range(4):
        Image.fromarray(np.full((16, 16), index, dtype=np.uint8)).save(root / "images" / f"{index}.png")
    model = {"latent_dim": 4, "channels": 1, "image_size": 16, "width": 2}
    save_generator(root / "g.safetensors", DCGANGenerator(**model), model)
    write_safely(root / "file", lambda file: None)
    return root


def required(command, place, option):
    """The arguments that a command needs, but for ``option``."""
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


def refused(capsys, args):
    with pytest.raises(SystemExit) as raised:
        cli.main(args)
    captured = capsys.readouterr()
    assert raised.value.code == 2, captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("gan-fast: ")
    return lines[0]


def test_the_sweep_reaches_every_option():
    for command in cli._COMMANDS:
        taken = {option for option in cli._options_of(command) if not option.startswith("--no-")} - {"--help"}
        assert taken == {option for name, option, *_ in options() if name == command}
    assert len(list(options())) > 45


@pytest.mark.parametrize(("command", "option"), sorted({case[:2] for case in cases()}))
def test_out_of_range_is_one_line_that_names_the_option(command, option, place, capsys):
    for value in (value for c, o, value in cases() if (c, o) == (command, option)):
        rest = required(command, place, option)
        value = value.format(place)
        words = [option + value] if value.startswith("=") else [option, *([value] * (2 if "betas" in option else 1))]
        line = refused(capsys, [command, *rest, *words])
        name = option[2:].replace("-", "_")
        if value in UNNAMED.get(name, ()):
            assert f" {option} {value}" in line
        else:
            assert line.startswith(f"gan-fast: {option}: ") or f" {option}" in line, line
        assert not (place / "run").exists()
        assert not (place / "x.onnx").exists()


def test_the_largest_grid_is_named(place, capsys):
    line = refused(capsys, ["sample", str(place / "g.safetensors"), "--n", "300000"])
    assert "--n: expected at most 276168, which fill a grid of 89,478,485 pixels, got 300000" in line


@pytest.mark.parametrize(
    ("args", "want"),
    [
        (["train", "--step", "5"], "got --step; did you mean --steps?"),
        (["train", "--lr=5"], "got --lr; did you mean --d-lr or --g-lr?"),
        (["train", "--batchsize", "5"], "got --batchsize; did you mean --batch-size?"),
        (["sample", "x", "--sed", "1"], "got --sed; did you mean --seed?"),
        (["train", "--zzz"], "expected an option of train, got --zzz (see gan-fast train --help)"),
        (["trian"], "got 'trian'; did you mean train?"),
        (["exprot", "x"], "got 'exprot'; did you mean export?"),
        (["--versio"], "got '--versio'"),
        (["train", "--data", "digits", "--out"], "--out: expected a value, got none"),
        (
            ["train", "--data", "digits"],
            "train: expected --out PATH The run's folder; made where it is missing, got none",
        ),
        (["train"], "train: expected --data STR "),
        (["train", "--resume"], "train: expected --out, the folder of the run to resume, got none"),
        (["sample"], "sample: expected PATH A run's folder, or a generator's safetensors file, got none"),
        (["sample", "-n", "3"], "run: expected a value, got none"),
        (["train", "--d-betas", "0.5"], "--d-betas: expected 2 values, got fewer"),
        (["sample", "runs/a", "runs/b"], "sample: expected no other argument, got runs/b"),
        (["info", "x"], "info: expected no other argument, got x"),
        (
            ["train", "--data", "x", "--out", "x", "--update", "one_stage", "--d-steps", "2"],
            "--d-steps: expected 1 for update one_stage, got 2",
        ),
    ],
)
def test_a_near_miss_is_named(args, want, capsys):
    assert want in refused(capsys, args)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("TrainConfig: expected d_lr in (0, inf), got 0.0", "--d-lr: expected in (0, inf), got 0.0"),
        (
            "load_images: expected source 'd_lr/x' file 'd_lr' to be a usable image; pass bad_files=\"skip\"",
            "--data: expected 'd_lr/x' file 'd_lr' to be a usable image; pass --bad-files skip",
        ),
        ("seed: the run has 0, the command 5", "--seed: the run has 0, the command 5"),
        ("resuming at step 5 of runs/d_lr", "resuming at step 5 of runs/d_lr"),
        ("the data's batch_size, the run's d_lr", "the data's --batch-size, the run's --d-lr"),
        ("GAN_FAST_BACKEND: expected name one of auto", "GAN_FAST_BACKEND: expected name one of auto"),
    ],
)
def test_messages_name_options(text, want):
    assert cli._in_options(text) == want


@pytest.mark.parametrize("out", ["batch_size", "my d_lr run", "d_norm=none", "--out=max_skipped"])
def test_a_folder_keeps_its_name_in_messages(out, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [out] if out.startswith("--") else ["--out", out]
    name = words[-1].removeprefix("--out=")
    line = refused(capsys, ["train", *words, "--resume"])
    assert line == f"gan-fast: --out: expected a folder with a run to resume, got {name} without config.json"


def test_version(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"gan-fast {cli.__version__}\n"


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["--version"], ["train", "--step"]])
def test_what_computes_nothing_does_not_import_torch(args):
    code = f"import runpy, sys; sys.argv[1:] = {args}; runpy.run_module('gan_fast', run_name='__main__')"
    code = (
        f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); sys.argv[0] = 'gan-fast'; {code}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_package_is_whole_after_a_lazy_import():
    code = (
        "import sys; sys.argv[0] = 'gan-fast'; import gan_fast; assert 'torch' not in sys.modules; "
        "print(all(hasattr(gan_fast, name) for name in gan_fast.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_importing_the_package_registers_the_ops():
    code = "import gan_fast, torch; torch.ops.gan_fast.batch_norm_act_forward"
    subprocess.run([sys.executable, "-c", code], check=True)
