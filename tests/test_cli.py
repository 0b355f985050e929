"""The command line end to end, on a few steps of a small network."""

import json
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
    """Run, expect the exit code, and return the one line on stderr."""
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
    # One run, that of `finished`, is enough to train a classifier for.
    monkeypatch.setattr(run.Run, "_report_coverage", lambda self: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(out, "--steps", "10", "--tensorboard")
    return out


def test_folder_of_a_run(finished):
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


def test_sample_rebuilds_either_generator(finished, tmp_path, capsys):
    for options in ([], ["--no-ema"], ["--seed", "1"], ["--n", "9"]):
        cli.main(["sample", str(finished), "--out", str(tmp_path / f"{'_'.join(options)}.png"), *options])
    pictures = [np.asarray(Image.open(path)) for path in sorted(tmp_path.iterdir())]
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert str(tmp_path / "--no-ema.png") in capsys.readouterr().out
    state = load_checkpoint(finished / "checkpoint.pt")["trainer"]
    generator = load_generator(finished / "generator.safetensors")
    assert_same_state(dict(generator.state_dict()), dict(state["generator"]))
    want = image_grid(generate(generator, draw_latents(64, 8, 0)))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "--no-ema.png")), np.asarray(want))


def test_sample_takes_a_file_too(finished, tmp_path):
    cli.main(["sample", str(finished / "generator.safetensors"), "--out", str(tmp_path / "new" / "x.png")])
    assert (tmp_path / "new" / "x.png").exists()


@pytest.mark.parametrize(("suffix", "options"), [("onnx", []), ("pt2", ["--format", "exported", "--no-ema"])])
def test_export_rebuilds_either_generator(finished, tmp_path, capsys, suffix, options):
    out = tmp_path / "new" / f"generator.{suffix}"
    cli.main(["export", str(finished), "--out", str(out), *options])
    assert capsys.readouterr().out == f"{out}\n"
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    latents = draw_latents(3, 8, 1)
    if suffix == "onnx":
        (result,) = onnxruntime.InferenceSession(out).run(None, {"latent": latents.numpy()})
    else:
        result = torch.export.load(out).module()(latents).numpy()
    name = "generator" if "--no-ema" in options else "generator_ema"
    want = load_generator(finished / f"{name}.safetensors")(latents)
    assert np.abs(result - want.detach().numpy()).max() <= 1e-5


def test_export_says_what_to_install(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = fails(capsys, 2, "export", finished, "--out", tmp_path / "x.onnx")
    assert "expected onnx and onnxscript to be installed, got no onnxscript; run: pip install 'gan_fast[onnx]'" in line
    assert list(tmp_path.iterdir()) == []


def test_info(capsys):
    cli.main(["info", "--no-check"])
    assert "minimax_d_loss" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["info"], ["train", "--data", "digits", "--out", "{}/run"], ["sample", "{}"]])
def test_a_backend_that_nobody_knows_is_one_line(args, tmp_path, monkeypatch, capsys):
    """As import leaves it; the test of backends begins with the environment."""
    monkeypatch.setenv("GAN_FAST_BACKEND", "bogus")
    monkeypatch.setattr(backends, "_requested", "")
    line = fails(capsys, 2, *(arg.format(tmp_path) for arg in args))
    assert line == ("gan-fast: GAN_FAST_BACKEND: expected name one of auto, reference, cpu, cuda, triton, got 'bogus'")
    assert not any(tmp_path.iterdir())


def test_resume_goes_on_as_if_never_stopped(finished, tmp_path, capsys):
    train(tmp_path / "run", "--steps", "6")
    # Rows after the checkpoint, as a killed run leaves them, and one cut short.
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "d_loss": 77, "time_s": 1.0}\n{"step": 1')
    train(tmp_path / "run", "--steps", "10", "--cuda-graph", "off", "--resume")
    said = capsys.readouterr().out
    assert "changed: --steps: the run has 6, the command 10" in said
    assert "changed: --cuda-graph: the run has 'auto', the command 'off'" in said
    assert "resuming at step 6" in said
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [3, 6, 9, 10]
    assert 77 not in [row["d_loss"] for row in rows_of(tmp_path / "run")]
    assert_same_state(*(load_checkpoint(out / "checkpoint.pt")["trainer"] for out in (finished, tmp_path / "run")))


def test_resume_needs_out_alone(tmp_path, capsys):
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


def test_data_are_what_they_hold_not_what_they_are_called(tmp_path, capsys, monkeypatch):
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
    assert f"--data: expected the images of the run, got '{photos}', which does not exist; name the place" in line
    cli.main(["train", "--out", "../run", "--resume", "--data", "../moved"])
    cli.main(["train", "--out", "../run", "--resume", "--steps", "4"])
    assert "resuming at step 3" in capsys.readouterr().out


def test_a_changed_image_is_noticed_by_its_content(tmp_path, capsys):
    photos = image_folder(tmp_path / "photos")
    cli.main(["train", "--data", str(photos), "--out", str(tmp_path / "run"), *FEW, "--steps", "1"])
    resume = ["train", "--out", tmp_path / "run", "--resume", "--steps", 2]
    Image.new("L", (16, 16), 200).save(photos / "00.png")
    before = snapshot(tmp_path / "run")
    line = fails(capsys, 2, *resume)
    assert "--data: expected the images that" in line
    assert "as many images, but other pixels or labels" in line
    assert "go on with these by --allow-changed-data" in line
    assert snapshot(tmp_path / "run") == before
    cli.main(list(map(str, [*resume, "--allow-changed-data"])))
    assert "not the same run any more" in capsys.readouterr().out
    cli.main(["train", "--out", str(tmp_path / "run"), "--resume", "--steps", "3"])
    assert "changed: data" not in capsys.readouterr().out


def test_a_config_that_does_not_agree_with_the_checkpoint_is_refused(tmp_path, capsys):
    train(tmp_path, "--steps", "4")
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"width": 2', '"width": 3'))
    line = fails(capsys, 1, "train", "--out", tmp_path, "--resume")
    assert "checkpoint.pt: not a checkpoint of the run in config.json: it differs from config.json in width" in line


def test_damaged_rows_are_left_out_and_the_rest_kept(tmp_path):
    train(tmp_path, "--steps", "10")
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff{\n" + b"5\n{}\n" + b"".join(lines[2:]))
    cli.main(["train", "--out", str(tmp_path), "--resume"])
    assert [row["step"] for row in rows_of(tmp_path)] == [3, 9, 10]


def test_resume_of_a_run_that_began_with_fewer_options(tmp_path, capsys):
    train(tmp_path / "run", "--steps", "4")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    for name in ("penalty", "regularizers", "update"):
        del record["config"][name]
    path.write_text(json.dumps(record))
    train(tmp_path / "run", "--steps", "6", "--resume")
    assert "resuming at step 4" in capsys.readouterr().out
    assert "expected the options" in fails(
        capsys, 2, "train", "--out", tmp_path / "run", *SMALL, *PACE, "--steps", 8, "--resume", "--penalty", "r1"
    )


def test_a_training_composed_of_everything(tmp_path):
    options = ["--objective", "relativistic_average", "--penalty", "gradient_penalty+r1+r2", "--penalty-every", "2"]
    regularizers = ["--regularizers", "spectral_norm", "weight_clipping", "instance_noise", "feature_matching"]
    train(tmp_path / "run", "--steps", "3", *options, *regularizers)
    train(tmp_path / "run", "--steps", "5", *options, *regularizers, "--resume")
    assert rows_of(tmp_path / "run")[-1]["penalty"] > 0


def test_resume_before_the_first_checkpoint_starts_over(tmp_path, capsys):
    train(tmp_path, "--steps", "2")
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (tmp_path / name).unlink()
    train(tmp_path, "--steps", "2", "--resume")
    assert "starting at step 0" in capsys.readouterr().out


def test_resume_from_a_damaged_checkpoint_takes_the_previous_one(tmp_path, capsys):
    train(tmp_path, "--steps", "6")
    content = bytearray((tmp_path / "checkpoint.pt").read_bytes())
    content[1000] ^= 1
    (tmp_path / "checkpoint.pt").write_bytes(content)
    train(tmp_path, "--steps", "6", "--resume")
    said = capsys.readouterr().out
    assert "damaged: SHA-256 is" in said
    assert "resuming at step 4" in said
    previous_of(tmp_path / "checkpoint.pt").unlink()
    (tmp_path / "checkpoint.pt").write_bytes(content)
    line = fails(capsys, 1, "train", "--out", tmp_path, *SMALL, *PACE, "--steps", "6", "--resume")
    assert "checkpoint.pt: damaged: SHA-256 is" in line


@pytest.mark.parametrize("data", [["--data", "digits"], ["--data=digits"]])
def test_digits_have_defaults_of_their_own(data):
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
        (["--resume", "--seed", "5"], "--seed: the run has 0, the command 5"),
        (
            ["--resume", "--width", "4", "--d-norm", "batch"],
            "--width: the run has 2, the command 4; --d-norm: the run has 'none'",
        ),
        (
            ["--resume", "--data", "/nowhere"],
            "--data: expected the images of the run, got '/nowhere', which does not exist",
        ),
    ],
)
def test_a_run_is_never_overwritten(finished, capsys, options, want):
    before = snapshot(finished)
    assert want in fails(capsys, 2, "train", "--out", finished, *SMALL, *PACE, *options)
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("args", "want"),
    [
        (["train", "--data", "digits"], "train: expected --out PATH"),
        (["train", *SMALL, "--out", "OUT", "--batch-size", "1"], "gan-fast: --batch-size: expected at least 2, got 1"),
        (
            ["train", *SMALL, "--out", "OUT", "--objective", "wgan"],
            "--objective: expected one of minimax, non_saturating",
        ),
        (["train", *SMALL, "--out", "OUT", "--steps", "many"], "--steps: expected an integer, got 'many'"),
        (
            ["train", *SMALL, "--out", "OUT", "--stepz", "1"],
            "got --stepz; did you mean --steps? (see gan-fast train --help)",
        ),
        (
            ["train", *SMALL, "--out", "OUT", "--image-size", "17"],
            "--image-size: expected one of 16, 32, 64, 128, got 17",
        ),
        (
            ["train", *SMALL, "--out", "OUT", "--batch-size", "1798"],
            "--data: expected 'digits' to hold at least 1798 images, which a batch needs, got 1797; add images",
        ),
        (["train", *SMALL, "--out", "OUT", "--device", "abacus"], "--device: expected one that is here, got 'abacus'"),
        (["train", *SMALL, "--out", "OUT", "--device", "meta"], "--device: expected one that is here, got 'meta'"),
        (["train", *SMALL, "--out", "OUT", "--threads", "0"], "--threads: expected 1 to 1024, got 0"),
        (["train", *SMALL, "--out", "OUT", "--resume"], "--out: expected a folder with a run to resume"),
        (["train", "--data", "/nowhere", "--out", "OUT"], "got '/nowhere', which does not exist"),
        (["train", *SMALL, "--out", "/dev/null"], "--out: expected a folder, got the file /dev/null"),
        (
            ["train", *SMALL, "--out", "/dev/null/x"],
            "--out: expected a folder that can be created and written, got /dev/null/x: Not a directory",
        ),
        (["sample", "/nowhere"], "expected run a folder or file with a generator, got /nowhere"),
        (["sample", "/nowhere", "--out", "a.jpg"], "--out: expected a .png file, got a.jpg"),
        (["export", "/nowhere", "--out", "a.onnx"], "expected run a folder or file with a generator, got /nowhere"),
        (["export", "/nowhere", "--out", "a.pt2"], "--out: expected a .onnx file for format onnx, got a.pt2"),
        (["export", "/nowhere", "--out", "a.onnx", "--format", "exported"], "--out: expected a .pt2 file for format"),
        (["export", "/nowhere"], "export: expected --out PATH"),
        (["export"], "a generator's safetensors file; --out PATH"),
        (["dance"], "expected a command, one of train, sample, export, info, got 'dance'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, args, want):
    out = tmp_path / "out"
    assert want in fails(capsys, 2, *[out if arg == "OUT" else arg for arg in args])
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (["--device", "meta"], "--device: expected one that is here, got 'meta'"),
        (["--device", "cpu", "--cuda-graph", "on"], "--device: expected a GPU for --cuda-graph on, got cpu"),
    ],
)
def test_what_does_not_depend_on_the_images_is_said_before_they_are_read(options, want, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "load_images", lambda *args, **kwargs: pytest.fail("images were read"))
    assert want in fails(capsys, 2, "train", *SMALL, "--out", tmp_path / "out", *options)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"config": null}', '{"config": {}}', '{"config": {"data": 1}}', "[" * 9999],
)
@pytest.mark.parametrize("options", [[], SMALL])
def test_a_damaged_record_is_one_line(content, options, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    line = fails(capsys, 2, "train", *options, "--out", tmp_path, "--resume")
    assert f"expected {tmp_path / 'config.json'} to hold a configuration, got: " in line


@pytest.mark.parametrize("key", ["config", "versions"])
def test_a_record_without_one_of_its_parts_is_one_line(key, finished, tmp_path, capsys):
    record = json.loads((finished / "config.json").read_text())
    record[key] = None
    (tmp_path / "config.json").write_text(json.dumps(record))
    line = fails(capsys, 2, "train", "--out", tmp_path, "--resume")
    assert line.endswith(f"to hold a configuration, got: {key} of type NoneType")


def test_resume_asks_for_more_steps(finished, capsys):
    before = snapshot(finished)
    assert "--steps: expected at least the 10 that" in fails(
        capsys, 2, "train", *SMALL, "--out", finished, "--steps", "9", "--resume"
    )
    assert snapshot(finished) == before


def test_unreadable_and_changed_files_are_named(tmp_path, capsys):
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
    assert "the run had 20 images, the data have 19; name the place" in capsys.readouterr().err
    said = train("--steps", "2", "--resume", "--allow-changed-data")
    assert "changed: data: the run had 20 images, the data have 19: not the same run any more" in said


def test_sample_needs_at_least_one_image(finished, capsys):
    assert "--n: expected at least 1, got 0" in fails(capsys, 2, "sample", finished, "--n", "0")


def test_tensorboard_that_is_not_installed_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = fails(capsys, 2, "train", "--out", tmp_path / "x", *SMALL, "--tensorboard")
    assert 'pip install "gan_fast[tensorboard]"' in line


def test_divergence_ends_the_run_and_keeps_the_checkpoint(tmp_path, capsys, monkeypatch):
    step = Trainer.step

    def diverging(self, real):
        result = step(self, real)
        if self.steps_done == 6:
            next(self.generator.parameters()).data.fill_(float("nan"))
        return result

    monkeypatch.setattr(Trainer, "step", diverging)
    line = fails(capsys, 1, "train", "--out", tmp_path, *SMALL, *PACE, "--steps", "20")
    assert "expected finite weights at step 8, got NaN or infinity; the checkpoint of step 4 stands" in line
    assert load_checkpoint(tmp_path / "checkpoint.pt")["trainer"]["steps_done"] == 4
    # What is not a number is null in JSON, not a word that readers refuse.
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
    assert "checkpoint.pt: cannot be saved (file write failed); what was there before stands" in line
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["trainer"]["steps_done"] == 4


def test_signals_save_and_say_how_to_go_on(tmp_path):
    runs = {number: tmp_path / number.name for number in (signal.SIGINT, signal.SIGTERM)}
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
        assert f"stopped by {number.name} after step {step}; saved. Go on with:" in said
        assert said.rstrip().endswith(f"--out {out} --resume")
        assert rows_of(out)[-1]["step"] == step
        assert {"curves.png", "generator_ema.safetensors"} <= {path.name for path in out.iterdir()}
        assert (out / "samples" / f"step_{step:06d}.png").exists()


def test_a_backend_that_is_not_here_is_said_before_images_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "_load", lambda *_: pytest.fail("images were read"))
    with backends.use_backend("cuda"), pytest.raises(SystemExit) as raised:
        cli.main(["train", "--data", "digits", "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert raised.value.code == 2
    line = "gan-fast: GAN_FAST_BACKEND: conv2d: expected input device cuda for backend cuda, got cpu\n"
    assert capsys.readouterr().err == line
