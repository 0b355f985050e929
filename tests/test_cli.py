"""The command line from end to end, with small networks and few steps."""

import json
import logging
import signal
import subprocess
import sys
import time

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from train.players import assert_same_state

from gan_fast import backends, cli
from gan_fast.files import previous_of
from gan_fast.train import TrainConfig, Trainer, run
from gan_fast.train.checkpoint import load_checkpoint, load_generator
from gan_fast.train.loop import LOGGED, draw_latents, generate
from gan_fast.train.pictures import image_grid

SMALL = [
    *("--data", "digits", "--image-size", "16", "--width", "2", "--latent-dim", "8"),
    *("--batch-size", "16", "--threads", "1"),
]
PACE = ["--log-every", "3", "--sample-every", "5", "--checkpoint-every", "4"]


def train(out, *options):
    cli.main(["train", "--out", str(out), *SMALL, *PACE, *options])


def fails(capsys, code, *args):
    """Run the command line, check its exit code, and return the single error line."""
    with pytest.raises(SystemExit) as raised:
        cli.main(list(map(str, args)))
    assert raised.value.code == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gan-fast: ")]
    assert len(lines) == 1
    return lines[0]


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    # Class coverage trains a classifier, which takes long; only the run of `finished` measures it.
    monkeypatch.setattr(run.Run, "_report_coverage", lambda self: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(out, "--steps", "10", "--tensorboard")
    return out


def test_run_writes_its_files(finished):
    files = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    assert [name for name in files if "tensorboard" not in name] == [
        "checkpoint.previous.pt",
        "checkpoint.pt",
        "class_coverage.json",
        "config.json",
        "curves.png",
        "generator.safetensors",
        "generator_ema.safetensors",
        "history.jsonl",
        "metrics.jsonl",
        "samples/step_000005.png",
        "samples/step_000010.png",
    ]
    assert any(name.startswith("tensorboard/events") for name in files)
    record = json.loads((finished / "config.json").read_text())
    assert record["config"]["batch_size"] == 16
    assert record["config"]["d_betas"] == [0.5, 0.999]
    assert record["model"] == {"latent_dim": 8, "channels": 1, "image_size": 16, "width": 2}
    assert record["versions"]["torch"] == torch.__version__
    rows = rows_of(finished)
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    names = {"step", *LOGGED, "images_per_s", "time_s", "skipped_steps"}
    assert all(set(row) == names for row in rows)
    assert [row["time_s"] for row in rows] == sorted(row["time_s"] for row in rows)
    coverage = json.loads((finished / "class_coverage.json").read_text())
    assert coverage["samples"] == 1000
    assert sum(coverage["fractions"].values()) == pytest.approx(1)
    assert load_checkpoint(finished / "checkpoint.pt")["trainer"]["steps_done"] == 10
    assert load_checkpoint(previous_of(finished / "checkpoint.pt"))["trainer"]["steps_done"] == 8


def test_sample_draws_from_either_generator(finished, tmp_path, capsys):
    for options in ([], ["--no-ema"], ["--seed", "1"], ["--n", "9"], ["--truncation", "0.5"]):
        cli.main(["sample", str(finished), "--out", str(tmp_path / f"{'_'.join(options)}.png"), *options])
    pictures = [np.asarray(Image.open(path)) for path in sorted(tmp_path.iterdir())]
    assert len({picture.tobytes() for picture in pictures}) == 5
    assert str(tmp_path / "--no-ema.png") in capsys.readouterr().out
    state = load_checkpoint(finished / "checkpoint.pt")["trainer"]
    generator = load_generator(finished / "generator.safetensors")
    assert_same_state(dict(generator.state_dict()), dict(state["generator"]))
    want = image_grid(generate(generator, draw_latents(64, 8, 0)))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "--no-ema.png")), np.asarray(want))


def test_sample_accepts_a_generator_file(finished, tmp_path):
    cli.main(["sample", str(finished / "generator.safetensors"), "--out", str(tmp_path / "new" / "x.png")])
    assert (tmp_path / "new" / "x.png").exists()


@pytest.mark.parametrize(("suffix", "options"), [("onnx", []), ("pt2", ["--format", "exported", "--no-ema"])])
def test_export_writes_either_generator(finished, tmp_path, capsys, suffix, options):
    out = tmp_path / "new" / f"generator.{suffix}"
    cli.main(["export", str(finished), "--out", str(out), *options])
    assert capsys.readouterr().out == (
        f"{out}\ninput: latent (batch, 8), standard normal\noutput: images (batch, 1, 16, 16), in [-1, 1]\n"
    )
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    latents = draw_latents(3, 8, 1)
    if suffix == "onnx":
        (result,) = onnxruntime.InferenceSession(out).run(["images"], {"latent": latents.numpy()})
    else:
        result = torch.export.load(out).module()(latents).numpy()
    name = "generator" if "--no-ema" in options else "generator_ema"
    want = load_generator(finished / f"{name}.safetensors")(latents)
    assert np.abs(result - want.detach().numpy()).max() <= 1e-5


def test_export_without_onnx_names_the_package_to_install(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = fails(capsys, 2, "export", finished, "--out", tmp_path / "x.onnx")
    assert "expected onnx and onnxscript to be installed, got no onnxscript; run: pip install 'gan_fast[onnx]'" in line
    assert list(tmp_path.iterdir()) == []


def test_info_prints_every_op(capsys):
    cli.main(["info", "--no-check"])
    assert "minimax_d_loss" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["info"], ["train", "--data", "digits", "--out", "{}/run"], ["sample", "{}"]])
def test_unknown_backend_is_reported_in_one_line(args, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GAN_FAST_BACKEND", "bogus")
    # Empty: the environment variable has not been read yet, as after the import.
    monkeypatch.setattr(backends, "_requested", "")
    line = fails(capsys, 2, *(arg.format(tmp_path) for arg in args))
    assert line == ("gan-fast: GAN_FAST_BACKEND: expected one of auto, reference, cpu, cuda, triton, got 'bogus'")
    assert not any(tmp_path.iterdir())


def test_resumed_run_equals_one_that_was_not_interrupted(finished, tmp_path, capsys):
    train(tmp_path / "run", "--steps", "6")
    # A killed run leaves rows after the checkpoint, and a truncated one.
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "d_loss": 77, "time_s": 1.0}\n{"step": 1')
    train(tmp_path / "run", "--steps", "10", "--cuda-graph", "off", "--resume")
    said = capsys.readouterr().out
    assert "changed: --steps: the run has 6, the command 10" in said
    assert "changed: --cuda-graph: the run has auto, the command off" in said
    assert "resuming at step 6" in said
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [3, 6, 9, 10]
    assert 77 not in [row["d_loss"] for row in rows_of(tmp_path / "run")]
    assert_same_state(*(load_checkpoint(out / "checkpoint.pt")["trainer"] for out in (finished, tmp_path / "run")))


def test_resume_needs_no_other_option_than_out(tmp_path, capsys):
    train(tmp_path / "run", "--steps", "4", "--objective", "hinge")
    before = json.loads((tmp_path / "run" / "config.json").read_text())
    cli.main(["train", "--out", str(tmp_path / "run"), "--resume", "--steps", "6", "--d-lr", "0.001"])
    assert "changed: --d-lr: the run has 0.0004, the command 0.001" in capsys.readouterr().out
    after = json.loads((tmp_path / "run" / "config.json").read_text())
    assert after["config"] == before["config"] | {"steps": 6, "d_lr": 0.001}
    assert after["cpu_threads"] == 1
    assert {name: after[name] for name in ("model", "data_fingerprint", "images")} == {
        name: before[name] for name in ("model", "data_fingerprint", "images")
    }


def image_folder(folder, count=8, shade=0):
    folder.mkdir()
    for index in range(count):
        Image.new("L", (16, 16), index + shade).save(folder / f"{index:02}.png")
    return folder


FEW = ["--batch-size", "4", "--width", "2", "--image-size", "16", "--latent-dim", "4", "--threads", "1"]


def test_data_are_recognized_by_content_under_any_path(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    photos = image_folder(tmp_path / "photos")
    cli.main(["train", "--data", "photos/", "--out", "run", *FEW, "--steps", "1"])
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "elsewhere").mkdir()
    for data in ("photos", "./photos//", str(photos), "link", "~/photos", f"{photos}/../photos"):
        cli.main(["train", "--data", data, "--out", "run", "--resume"])
    assert "changed" not in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "elsewhere")
    cli.main(["train", "--out", "../run", "--resume", "--steps", "2"])
    cli.main(["train", "--out=~/run", "--data=../photos", "--resume", "--steps", "3"])
    photos.rename(tmp_path / "moved")
    line = fails(capsys, 2, "train", "--out", "../run", "--resume")
    assert f"--data: expected the images of the run, got '{photos}', which does not exist; if they were moved" in line
    cli.main(["train", "--out", "../run", "--resume", "--data", "../moved"])
    cli.main(["train", "--out", "../run", "--resume", "--steps", "4"])
    assert "resuming at step 3" in capsys.readouterr().out


def test_changed_image_is_detected(tmp_path, capsys):
    photos = image_folder(tmp_path / "photos")
    cli.main(["train", "--data", str(photos), "--out", str(tmp_path / "run"), *FEW, "--steps", "1"])
    resume = ["train", "--out", tmp_path / "run", "--resume", "--steps", 2]
    Image.new("L", (16, 16), 200).save(photos / "00.png")
    before = snapshot(tmp_path / "run")
    line = fails(capsys, 2, *resume)
    assert "--data: expected the images that" in line
    assert "the number of images is the same, but pixels or labels differ" in line
    assert "accept the change with --allow-changed-data" in line
    assert snapshot(tmp_path / "run") == before
    cli.main(list(map(str, [*resume, "--allow-changed-data"])))
    assert "changed: --data: the number of images is the same" in capsys.readouterr().out
    cli.main(["train", "--out", str(tmp_path / "run"), "--resume", "--steps", "3"])
    assert "changed: --data" not in capsys.readouterr().out


def test_configuration_that_differs_from_the_checkpoint_is_refused(tmp_path, capsys):
    train(tmp_path, "--steps", "4")
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"width": 2', '"width": 3'))
    line = fails(capsys, 1, "train", "--out", tmp_path, "--resume")
    assert "checkpoint.pt: does not belong to the run in config.json: they differ in --width" in line


def test_damaged_rows_are_removed_and_the_others_kept(tmp_path):
    train(tmp_path, "--steps", "10")
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff{\n" + b"5\n{}\n" + b"".join(lines[2:]))
    cli.main(["train", "--out", str(tmp_path), "--resume"])
    assert [row["step"] for row in rows_of(tmp_path)] == [3, 9, 10]


def test_resume_of_a_run_from_a_version_with_fewer_options(tmp_path, capsys):
    train(tmp_path / "run", "--steps", "4")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    for name in ("penalty", "regularizers", "update"):
        del record["config"][name]
    path.write_text(json.dumps(record))
    train(tmp_path / "run", "--steps", "6", "--resume")
    assert "resuming at step 4" in capsys.readouterr().out
    line = fails(
        capsys, 2, "train", "--out", tmp_path / "run", *SMALL, *PACE, "--steps", 8, "--resume", "--penalty", "r1", "r2"
    )
    assert "expected the options" in line
    assert "--penalty: the run has none, the command r1 r2" in line


def test_resume_of_a_run_that_recorded_its_penalties_as_a_string(tmp_path, capsys):
    train(tmp_path / "run", "--steps", "4", "--penalty", "r1", "r2")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    assert record["config"]["penalty"] == ["r1", "r2"]
    record["config"]["penalty"] = "r1+r2"
    path.write_text(json.dumps(record))
    cli.main(["train", "--out", str(tmp_path / "run"), "--resume", "--steps", "6"])
    assert "resuming at step 4" in capsys.readouterr().out


def test_all_penalties_and_regularizers_train_together(tmp_path):
    options = ["--objective", "relativistic_average", "--penalty", "gradient_penalty", "r1", "r2"]
    options += ["--penalty-every", "2"]
    regularizers = ["--regularizers", "spectral_norm", "weight_clipping", "instance_noise", "feature_matching"]
    train(tmp_path / "run", "--steps", "3", *options, *regularizers)
    train(tmp_path / "run", "--steps", "5", *options, *regularizers, "--resume")
    assert rows_of(tmp_path / "run")[-1]["penalty"] > 0


def test_resume_without_a_checkpoint_starts_at_step_0(tmp_path, capsys):
    train(tmp_path, "--steps", "2")
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (tmp_path / name).unlink()
    train(tmp_path, "--steps", "2", "--resume")
    assert "starting at step 0" in capsys.readouterr().out


def test_resume_from_a_damaged_checkpoint_uses_the_previous_one(tmp_path, capsys):
    train(tmp_path, "--steps", "6")
    content = bytearray((tmp_path / "checkpoint.pt").read_bytes())
    content[1000] ^= 1
    (tmp_path / "checkpoint.pt").write_bytes(content)
    train(tmp_path, "--steps", "6", "--resume")
    said = capsys.readouterr().out
    assert "damaged: its SHA-256 is" in said
    assert "resuming at step 4" in said
    previous_of(tmp_path / "checkpoint.pt").unlink()
    (tmp_path / "checkpoint.pt").write_bytes(content)
    line = fails(capsys, 1, "train", "--out", tmp_path, *SMALL, *PACE, "--steps", "6", "--resume")
    assert "checkpoint.pt: damaged: its SHA-256 is" in line


@pytest.mark.parametrize("data", [["--data", "digits"], ["--data=digits"]])
def test_digits_have_other_defaults(data):
    digits = cli._parse(["train", *data, "--out", "x"]).run
    other = cli._parse(["train", "--data", "x.zip", "--out", "x"]).run
    assert (digits.image_size, digits.width, digits.d_norm) == (32, 16, "none")
    assert (other.image_size, other.width, other.d_norm) == (64, 64, "batch")
    assert other.train == TrainConfig()
    assert digits.train == TrainConfig(steps=4000, latent_dim=16, d_lr=4e-4, g_lr=1e-3)
    assert cli._parse(["train", *data, "--out", "x", "--g-lr", "0.5"]).run.train.g_lr == 0.5


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ([], "--out: expected a folder without a run"),
        (["--penalty", "r1", "none"], "none cannot be combined with r1"),
        (["--resume", "--seed", "5"], "--seed: the run has 0, the command 5"),
        (
            ["--resume", "--width", "4", "--d-norm", "batch"],
            "--width: the run has 2, the command 4; --d-norm: the run has none, the command batch",
        ),
        (
            ["--resume", "--data", "/nowhere"],
            "--data: expected the images of the run, got '/nowhere', which does not exist",
        ),
    ],
)
def test_refused_start_does_not_change_the_run(finished, capsys, options, want):
    before = snapshot(finished)
    assert want in fails(capsys, 2, "train", "--out", finished, *SMALL, *PACE, *options)
    assert snapshot(finished) == before


def test_folder_of_a_run_without_data_and_resume_names_resume(finished, capsys):
    line = fails(capsys, 2, "train", "--out", finished, "--steps", 20)
    assert line == f"gan-fast: --out: {finished} holds a run; add --resume to continue it"


@pytest.mark.parametrize(
    ("args", "want"),
    [
        (["train", *SMALL, "--out", "OUT", "--batch-size", "1"], "gan-fast: --batch-size: expected at least 2, got 1"),
        (
            ["train", *SMALL, "--out", "OUT", "--batch-size", "1798"],
            "--data: expected 'digits' to hold at least 1798 images, which a batch needs, got 1797; add images, "
            "or lower --batch-size to at most 1797",
        ),
        (["train", *SMALL, "--out", "OUT", "--device", "abacus"], "--device: expected one of auto, cpu"),
        (["train", *SMALL, "--out", "OUT", "--device", "meta"], "got 'meta'"),
        (["train", *SMALL, "--out", "OUT", "--threads", "0"], "--threads: expected 1 to 1024, got 0"),
        (["train", *SMALL, "--out", "OUT", "--resume"], "--out: expected the folder of a run to resume"),
        (["train", "--data", "/nowhere", "--out", "OUT"], "got '/nowhere', which does not exist"),
        (["train", *SMALL, "--out", "/dev/null"], "--out: expected a folder, got the file /dev/null"),
        (
            ["train", *SMALL, "--out", "/dev/null/x"],
            "--out: expected a folder that can be created and written, got /dev/null/x: Not a directory",
        ),
        (
            ["sample", "/nowhere"],
            "PATH: expected the folder of a run or a generator's .safetensors file, got /nowhere, which does not",
        ),
        (["sample", __file__], "test_cli.py, a file of another kind"),
        (
            ["train", "--out", "/nowhere", "--resume"],
            "a run to resume, got /nowhere, which does not exist",
        ),
        (["sample", "/"], "got the folder / without generator_ema.safetensors; it holds no run"),
        (["sample", "/nowhere", "--out", "a.jpg"], "--out: expected a .png file, got a.jpg"),
        (["export", "/nowhere", "--out", "a.onnx"], "got /nowhere, which does not exist"),
        (["export", "/nowhere", "--out", "a.pt2"], "--out: expected a .onnx file for format onnx, got a.pt2"),
        (["export", "/nowhere", "--out", "a.onnx", "--format", "exported"], "--out: expected a .pt2 file for format"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(capsys, tmp_path, args, want):
    out = tmp_path / "out"
    assert want in fails(capsys, 2, *[out if arg == "OUT" else arg for arg in args])
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (["--device", "meta"], "--device: expected one of auto, cpu"),
        (["--device", "cpu", "--cuda-graph", "on"], "--device: expected a GPU when cuda_graph is on, got cpu"),
    ],
)
def test_wrong_device_is_reported_before_the_images_are_read(options, want, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "load_images", lambda *args, **kwargs: pytest.fail("images were read"))
    assert want in fails(capsys, 2, "train", *SMALL, "--out", tmp_path / "out", *options)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"config": null}', '{"config": {}}', '{"config": {"data": 1}}', "[" * 9999],
)
@pytest.mark.parametrize("options", [[], SMALL])
def test_damaged_config_is_reported_in_one_line(content, options, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    line = fails(capsys, 2, "train", *options, "--out", tmp_path, "--resume")
    assert f"expected {tmp_path / 'config.json'} to hold the configuration of a run, got: " in line


@pytest.mark.parametrize("key", ["config", "versions"])
def test_incomplete_config_is_reported_in_one_line(key, finished, tmp_path, capsys):
    record = json.loads((finished / "config.json").read_text())
    record[key] = None
    (tmp_path / "config.json").write_text(json.dumps(record))
    line = fails(capsys, 2, "train", "--out", tmp_path, "--resume")
    assert line.endswith(f"to hold the configuration of a run, got: {key} of type NoneType")


def test_resume_with_fewer_steps_than_done_is_refused(finished, capsys):
    before = snapshot(finished)
    assert "--steps: expected at least the 10 steps that" in fails(
        capsys, 2, "train", *SMALL, "--out", finished, "--steps", "9", "--resume"
    )
    assert snapshot(finished) == before


def test_unreadable_and_changed_files_are_reported(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(20):
        Image.new("L", (16, 16), index).save(folder / f"{index:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    options = ["--data", folder, "--bad-files", "skip", "--batch-size", "8", "--width", "8", "--image-size", "16"]

    def train(*more):
        cli.main(["train", *map(str, [*options, "--out", tmp_path / "run", *more])])
        return capsys.readouterr().out

    assert "skipped broken.png: " in train("--steps", "1")
    (folder / "00.png").unlink()
    with pytest.raises(SystemExit):
        train("--steps", "2", "--resume")
    assert "the run was started with 20 images, and there are 19 now; set --data" in capsys.readouterr().err
    said = train("--steps", "2", "--resume", "--allow-changed-data")
    assert "changed: --data: the run was started with 20 images, and there are 19 now" in said
    for index in range(1, 15):
        (folder / f"{index:02}.png").unlink()
    with pytest.raises(SystemExit):
        train("--steps", "3", "--resume", "--allow-changed-data")
    assert "--data: expected at least 8 images, one batch of this run, got 5\n" in capsys.readouterr().err


def test_sample_needs_at_least_one_image(finished, capsys):
    assert "--n: expected at least 1, got 0" in fails(capsys, 2, "sample", finished, "--n", "0")


def test_missing_tensorboard_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = fails(capsys, 2, "train", "--out", tmp_path / "x", *SMALL, "--tensorboard")
    assert 'pip install "gan_fast[tensorboard]"' in line


def test_finished_run_is_not_measured_again(tmp_path, capsys, monkeypatch):
    train(tmp_path / "run", "--steps", "4")
    coverage = tmp_path / "run" / "class_coverage.json"
    coverage.write_text("{}")
    monkeypatch.setattr(run.Run, "_report_coverage", lambda self: self._say("measured"))
    resume = ["train", "--out", str(tmp_path / "run"), "--resume"]
    cli.main(resume)
    said = capsys.readouterr().out
    assert "this run has finished all of its 4 steps; a larger --steps continues it" in said
    assert "measured" not in said
    cli.main([*resume, "--steps", "5"])
    assert "measured" in capsys.readouterr().out
    coverage.unlink()
    cli.main(resume)
    assert "measured" in capsys.readouterr().out


def test_options_without_effect_are_reported_in_one_line(tmp_path, capsys):
    train(tmp_path / "run", "--steps", "1", "--noise-std", "0.5", "--clip-value", "1", "--allow-changed-data")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert lines == [
        "warning: options without effect: --allow-changed-data (needs --resume)",
        "warning: options without effect: --clip-value (needs --regularizers weight_clipping), "
        "--noise-std (needs --regularizers instance_noise)",
    ]


def test_log_line_does_not_share_a_line_with_the_progress_bar(tmp_path, capsys, monkeypatch):
    step = Trainer.step

    def logging_step(self, real):
        logging.getLogger("gan_fast").warning("a log record")
        return step(self, real)

    monkeypatch.setattr(Trainer, "step", logging_step)
    monkeypatch.setattr(run, "_is_watched", lambda: True)
    train(tmp_path / "run", "--steps", "1")
    before, _, after = capsys.readouterr().err.partition("a log record")
    assert "train:   0%" in before
    # The bar is cleared by spaces between two carriage returns.
    assert before.endswith(" \r")
    assert after.startswith("\n")


@pytest.mark.parametrize("watched", [False, True])
def test_end_of_a_run_says_the_losses_and_where_the_pictures_are(watched, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "_is_watched", lambda: watched)
    out = tmp_path / "my run"
    train(out, "--steps", "4")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines].count("step 4 of 4") == 1
    assert lines[-4:] == [
        f"done: {out}",
        f"samples: {out / 'samples' / 'step_000004.png'}",
        f"curves: {out / 'curves.png'}",
        f"more samples: gan-fast sample '{out}'",
    ]
    assert (out / "samples" / "step_000004.png").exists()
    assert (out / "curves.png").exists()


def test_losses_are_shown_with_three_significant_digits(tmp_path, capsys, monkeypatch):
    fit = Trainer.fit

    def logging_fit(self, on_log, on_step):
        return fit(self, lambda row: on_log(row | {"d_loss": -0.00012345, "g_loss": 12.345}), on_step)

    monkeypatch.setattr(Trainer, "fit", logging_fit)
    train(tmp_path / "run", "--steps", "1")
    assert "step 1 of 1: d_loss -0.000123, g_loss 12.3, " in capsys.readouterr().out


def test_penalty_is_shown_only_if_there_is_one(tmp_path, capsys):
    train(tmp_path / "plain", "--steps", "1")
    assert "step 1 of 1: d_loss" in (said := capsys.readouterr().out)
    assert ", penalty" not in said
    train(tmp_path / "penalized", "--steps", "1", "--penalty", "r1")
    assert ", penalty " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ([], "use a smaller --batch-size or --width"),
        (["--resume"], "--batch-size and --width of this run cannot change: start a new run with smaller ones"),
    ],
)
def test_out_of_memory_comes_with_advice_that_applies(tmp_path, capsys, monkeypatch, options, advice):
    if options:
        train(tmp_path / "run", "--steps", "1")
    monkeypatch.setattr(Trainer, "step", lambda *_: (_ for _ in ()).throw(MemoryError("no memory\nat all")))
    line = fails(capsys, 1, "train", "--out", tmp_path / "run", *SMALL, *PACE, "--steps", 9, *options)
    assert line == f"gan-fast: out of memory; {advice} (no memory)"


def test_divergence_ends_the_run_and_keeps_the_checkpoint(tmp_path, capsys, monkeypatch):
    step = Trainer.step

    def diverging(self, real):
        result = step(self, real)
        if self.steps_done == 6:
            next(self.generator.parameters()).data.fill_(float("nan"))
        return result

    monkeypatch.setattr(Trainer, "step", diverging)
    line = fails(capsys, 1, "train", "--out", tmp_path, *SMALL, *PACE, "--steps", "20")
    assert "expected finite weights at step 8, got NaN or infinity; the checkpoint of step 4 is kept" in line
    assert load_checkpoint(tmp_path / "checkpoint.pt")["trainer"]["steps_done"] == 4
    # JSON has no NaN; it is written as null.
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_full_disk_ends_the_run_and_keeps_the_checkpoint(tmp_path, capsys, monkeypatch):
    save, calls = run.save_checkpoint, []

    def filling(path, state):
        calls.append(path)
        if len(calls) == 2:
            monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("file write failed")))
        save(path, state)

    monkeypatch.setattr(run, "save_checkpoint", filling)
    line = fails(capsys, 1, "train", "--out", tmp_path, *SMALL, *PACE, "--steps", "20")
    assert "checkpoint.pt: cannot be saved (file write failed); an existing file is unchanged" in line
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["trainer"]["steps_done"] == 4


def test_signals_save_the_run_and_print_how_to_continue(tmp_path):
    runs = {number: tmp_path / number.name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    command = [sys.executable, "-m", "gan_fast", "train", *SMALL, "--steps", "1000000", "--log-every", "1", "--out"]
    options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = {number: subprocess.Popen([*command, str(out)], **options) for number, out in runs.items()}
    try:
        for number, process in processes.items():
            out, deadline = runs[number], time.monotonic() + 90
            while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
        ends = {number: process.communicate(timeout=60) for number, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    for number, (said, errors) in ends.items():
        out = runs[number]
        assert processes[number].returncode == 128 + number
        assert "Traceback" not in errors
        step = load_checkpoint(out / "checkpoint.pt")["trainer"]["steps_done"]
        assert f"stopped at step {step} ({number.name}) and saved; to continue, run:" in said
        assert said.rstrip().endswith(f"--out {out} --resume")
        assert rows_of(out)[-1]["step"] == step
        assert {"curves.png", "generator_ema.safetensors"} <= {path.name for path in out.iterdir()}
        assert (out / "samples" / f"step_{step:06d}.png").exists()


@pytest.mark.parametrize("args", [["sample", "{}"], ["export", "{}", "--out", "{}/g.onnx"]])
def test_missing_backend_is_reported_before_a_generator_is_used(args, finished, capsys):
    with backends.use_backend("cuda"):
        line = fails(capsys, 2, *(arg.format(finished) for arg in args))
    assert "GAN_FAST_BACKEND: expected input on a cuda device for backend cuda, got cpu; unset" in line


def test_missing_backend_is_reported_before_images_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "load_images", lambda *_, **__: pytest.fail("images were read"))
    with backends.use_backend("cuda"), pytest.raises(SystemExit) as raised:
        cli.main(["train", "--data", "digits", "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert raised.value.code == 2
    line = "gan-fast: GAN_FAST_BACKEND: expected input on a cuda device for backend cuda, got cpu; "
    line += "unset GAN_FAST_BACKEND to use the fastest available\n"
    assert capsys.readouterr().err == line
