"""The command line as a process: streams, undecodable file names, reproducible bytes, a time limit."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gan_fast import cli
from gan_fast.train.checkpoint import load_checkpoint
from gan_fast.train.history import git_commit

TRAIN = [
    *("train", "--image-size", "16", "--width", "2", "--latent-dim", "4", "--batch-size", "4", "--threads", "1"),
    *("--steps", "4", "--log-every", "2", "--sample-every", "2", "--checkpoint-every", "2", "--no-class-coverage"),
]
GAN_FAST = f"{shlex.quote(sys.executable)} -m gan_fast"
FILES = {
    *("checkpoint.pt", "checkpoint.previous.pt", "config.json", "curves.png", "generator.safetensors"),
    *("generator_ema.safetensors", "history.jsonl", "metrics.jsonl", "samples"),
}


def make_images(folder, names):
    for index, name in enumerate(names):
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (16, 16), dtype=np.uint8)
        with open(path, "wb") as file:
            Image.fromarray(noise).save(file, "PNG")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_images(root, [b"%d.png" % index for index in range(6)])
    return root


def shell(command, **environment):
    return subprocess.run(["bash", "-c", command], capture_output=True, env={**os.environ, **environment})


STREAMS = [">&- 2>&- <&-", ">/dev/full 2>/dev/full", "2>&1 | head -n 1"]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """The same training with each kind of streams and another hash seed: the process and the folder."""
    done = {}
    for index, streams in enumerate(STREAMS):
        out = tmp_path_factory.mktemp("runs") / "run"
        command = f"{GAN_FAST} {shlex.join([*TRAIN, '--data', str(data), '--out', str(out)])}"
        done[streams] = shell(f"set -o pipefail; {command} {streams}", PYTHONHASHSEED=str(index + 1)), out
    return done


@pytest.mark.parametrize("streams", STREAMS)
def test_training_continues_without_its_streams(runs, streams):
    done, out = runs[streams]
    assert done.returncode == 0, done
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"rror" not in done.stdout + done.stderr
    assert set(os.listdir(out)) == FILES
    assert load_checkpoint(out / "checkpoint.pt")["trainer"]["steps_done"] == 4
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [2, 4]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("--help >/dev/full", 1, b"gan-fast: cannot write all of the output to stdout\n"),
        ("--help | head -n 1", 0, b""),
        ("--help >&-", 0, b""),
        ("--version 2>&-", 0, b""),
        ("train --out x --data 2>&-", 2, b""),
        ("train --out x --data 2>/dev/full", 2, b""),
    ],
)
def test_lost_output_is_an_error_of_commands_that_only_print(command, code, said):
    done = shell(f"set -o pipefail; {GAN_FAST} {command}")
    assert (done.returncode, done.stderr) == (code, said)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
UTF_8 = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8:strict"}


def test_undecodable_names_can_be_used_and_resumed(tmp_path):
    data, out = os.path.join(os.fsencode(tmp_path), b"d\xff d"), os.path.join(os.fsencode(tmp_path), b"r\xfc/\xff")
    make_images(data, [b"a\xe9/\xff%d.png" % index for index in range(6)])
    with open(os.path.join(data, b"a\xe9", b"bad\xfd.png"), "wb") as file:
        file.write(b"no image")
    start = [sys.executable, "-m", "gan_fast"]
    options = [*TRAIN, "--bad-files", "skip", "--minutes", "0.00001"]
    first = [*start, *options, "--data", data, "--out", out]
    done = subprocess.run(first, capture_output=True, env=os.environ | ASCII)
    assert done.returncode == 0, done.stderr
    assert b"bad\\xfd.png" in done.stdout
    lines = done.stdout.decode().splitlines()
    assert lines[-2] == "stopped at step 1 (--minutes 1e-05) and saved; to continue, run:"
    assert lines[-1].startswith("  gan-fast train --out $'")
    # The run is resumed in another locale.
    done = shell(lines[-1].replace("gan-fast", GAN_FAST, 1), **UTF_8)
    assert done.returncode == 0, done.stderr
    assert b"resuming at step 1" in done.stdout


def test_tensorboard_needs_a_utf_8_folder_name(tmp_path, data, capsys):
    out = os.path.join(tmp_path, "\udcff")
    with pytest.raises(SystemExit) as raised:
        cli.main([*TRAIN, "--data", str(data), "--out", out, "--tensorboard"])
    assert raised.value.code == 2
    assert "--out: expected a folder whose name is UTF-8 for --tensorboard" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_equal_runs_write_equal_bytes(runs):
    contents = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for _, out in list(runs.values())[:2]
    ]
    differ = {str(name) for name in contents[0] if contents[0][name] != contents[1][name]}
    assert contents[0].keys() == contents[1].keys()
    # These two files hold times and the command line.
    assert differ == {"metrics.jsonl", "history.jsonl"}
    rows = [[json.loads(line) for line in content["metrics.jsonl"].splitlines()] for content in map(by_name, contents)]
    for row in (*rows[0], *rows[1]):
        del row["time_s"], row["images_per_s"]
    assert rows[0] == rows[1]


def by_name(contents):
    return {str(path): content for path, content in contents.items()}


def test_minutes_end_a_training_that_can_be_continued(data, tmp_path, capsys):
    out = tmp_path / "my run"
    cli.main([*TRAIN, "--data", str(data), "--out", str(out), "--steps", "9", "--minutes", "0.00001"])
    said = capsys.readouterr().out
    assert "stopped at step 1 (--minutes 1e-05) and saved; to continue, run:" in said
    assert said.splitlines()[-1] == f"  gan-fast train --out '{out}' --resume"
    assert load_checkpoint(out / "checkpoint.pt")["trainer"]["steps_done"] == 1
    assert (out / "samples" / "step_000001.png").exists()
    cli.main(["train", "--out", str(out), "--resume", "--minutes", "60"])
    assert f"done: {out}" in capsys.readouterr().out
    starts = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 1]
    assert starts[1]["command"] == f"gan-fast train --out '{out}' --resume --minutes 60"
    for start in starts:
        assert set(start["versions"]) == {"gan_fast", "torch", "python", "numpy", "pillow"}
        assert {"date", "git", "host", "device", "system", "cpu_threads", "folder"} <= set(start)


def test_git_commit_runs_no_program_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert git_commit() is None
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    monitor.chmod(0o755)
    subprocess.run([*git, "config", "core.fsmonitor", str(monitor)], check=True)
    commit = git_commit()
    assert commit is not None
    assert len(commit) >= 7
    assert "dirty" not in commit
    (tmp_path / "file").write_text("22")
    assert git_commit() == f"{commit}-dirty"
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
