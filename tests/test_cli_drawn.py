"""Random runs that are killed, damaged and resumed: each resumes or is refused in one line, and nothing is lost."""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from drawn import seeds
from PIL import Image
from train.players import assert_same_state

from gan_fast import cli, files
from gan_fast.files import previous_of
from gan_fast.train import Trainer, run
from gan_fast.train.checkpoint import load_checkpoint


class Killed(BaseException):
    """Simulates the end of the process; a BaseException, so that no error handler runs."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    for index in range(8):
        folder = root / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return root


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(run, "write_curves", lambda file, rows: file.write(b"curves"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def draw_options(rng):
    options = {
        "--steps": rng.randint(3, 9),
        "--log-every": rng.randint(1, 3),
        "--sample-every": rng.randint(1, 4),
        "--checkpoint-every": rng.randint(1, 4),
        "--seed": rng.choice([0, 1, 2**63 - 1]),
        "--objective": rng.choice(["non_saturating", "hinge", "relativistic", "least_squares"]),
        "--penalty": rng.choice([["none"], ["none"], ["r1"], ["r1", "r2"]]),
        "--d-norm": rng.choice(["batch", "none"]),
        "--d-steps": rng.choice([1, 1, 2]),
        "--bad-files": rng.choice(["raise", "skip"]),
    }
    chosen = rng.sample(sorted(options), rng.randint(1, len(options)))
    small = {"--image-size": 16, "--width": 2, "--batch-size": 4, "--latent-dim": 3, "--steps": options["--steps"]}
    return small | {name: options[name] for name in chosen}


def words(options):
    values = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [str(word) for name, value in values.items() for word in (name, *value)]


def call(capsys, *args):
    """Run the command; return its exit code and output. An error must be one line."""
    capsys.readouterr()
    code = 0
    try:
        cli.main(["train", *map(str, args)])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    if code:
        lines = [line for line in captured.err.splitlines() if line.startswith("gan-fast: ")]
        assert len(lines) == 1, captured.err
        assert code in (1, 2)
    assert "Traceback" not in captured.err
    return code, captured.out + captured.err


def killed_run(monkeypatch, rng, args):
    """Train and die at a random step or system call that writes; return whether it died."""
    calls_left = rng.randint(0, 60)

    def or_die(function):
        def wrapped(*args, **kwargs):
            nonlocal calls_left
            calls_left -= 1
            if calls_left < 0:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", or_die(os.replace))
        patch.setattr(files.os, "fsync", or_die(os.fsync))
        patch.setattr(Trainer, "step", or_die(Trainer.step))
        try:
            cli.main(["train", *map(str, args)])
        except Killed:
            return True
    return False


def damage(rng, out):
    """Damage one file of the run; return its path and former content."""
    path = rng.choice(sorted(path for path in out.rglob("*") if path.is_file()))
    content = path.read_bytes()
    at = rng.randrange(len(content)) if content else 0
    how = rng.choice(["flip", "cut", "remove", "append", "zero"])
    damaged = {
        "flip": content[:at] + bytes(b ^ 1 << rng.randrange(8) for b in content[at : at + 1]) + content[at + 1 :],
        "cut": content[:at],
        "append": content + b"\xff\x00",
        "zero": b"\0" * len(content),
    }
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(damaged[how])
    return path, content


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


def spelling(rng, path, tmp_path, monkeypatch):
    """Return another path to the same folder."""
    kind = rng.choice(["slash", "dots", "relative", "link", "plain", "home"])
    if kind == "link":
        link = tmp_path / f"link to {path.name}"
        link.symlink_to(path)
        return link
    if kind == "home":
        monkeypatch.setenv("HOME", str(path.parent))
        return f"~/{path.name}"
    names = {"slash": f"{path}/", "dots": f"{path}/../{path.name}", "relative": os.path.relpath(path), "plain": path}
    return names[kind]


@pytest.mark.parametrize("seed", seeds(12))
def test_random_run_resumes_or_is_refused_without_loss(seed, data, tmp_path, monkeypatch, capsys):
    rng = random.Random(seed)
    options, out, whole = draw_options(rng), tmp_path / "run", tmp_path / "whole"
    monkeypatch.chdir(tmp_path)
    first = ["--out", out, "--data", data, "--threads", 1, *words(options)]
    killed = killed_run(monkeypatch, rng, first)
    if not (out / "config.json").exists():
        # The run was killed before it was recorded, so it can only be started again.
        shutil.rmtree(out, ignore_errors=True)
        assert call(capsys, *first)[0] == 0
    # Damage a file, then resume with another path and with random options, some of which must not change.
    damaged, content = damage(rng, out) if rng.random() < 0.6 else (None, b"")
    before = snapshot(out)
    monkeypatch.chdir(rng.choice([tmp_path, data, "/"]))
    resume = ["--out", spelling(rng, out, tmp_path, monkeypatch), "--resume"]
    if "~" not in str(resume[1]) and rng.random() < 0.5:
        resume += ["--data", spelling(rng, data, tmp_path, monkeypatch)]
    changes = {"--steps": rng.randint(1, 12), "--g-lr": 1e-3, "--log-every": 2, "--width": 4, "--seed": 5}
    changed = rng.sample(sorted(changes), rng.choice([0, 0, 1, 2]))
    resume += words({name: changes[name] for name in changed})
    code, said = call(capsys, *resume)
    after = snapshot(out)
    if code:
        assert after == before, said
    if code and damaged is not None:
        damaged.write_bytes(content)
    # In any case it then continues to the end with the options that it was started with.
    config = json.loads((out / "config.json").read_text())["config"]
    steps = config["steps"]
    if not code and "--steps" in changed:
        assert steps == changes["--steps"]
    code, said = call(capsys, "--out", out, "--resume")
    assert code == 0, said
    checkpoint = load_checkpoint(out / "checkpoint.pt")["trainer"]
    assert checkpoint["steps_done"] == steps
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert not list(out.rglob("run.lock"))
    # A run that stopped before its first log row has none.
    if (damaged is None or damaged.name != "metrics.jsonl") and (rows or steps >= config["log_every"]):
        assert rows[-1]["step"] == steps
    # With unchanged learning rates it equals a run that was not interrupted.
    if "--g-lr" not in changed and killed:
        monkeypatch.chdir(tmp_path)
        first[1] = whole
        assert call(capsys, *first, "--steps", steps)[0] == 0
        assert_same_state(checkpoint, load_checkpoint(whole / "checkpoint.pt")["trainer"])
    assert previous_of(out / "checkpoint.pt").exists() or steps <= config["checkpoint_every"] or damaged is not None
