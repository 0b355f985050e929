"""Checkpoints under every kind of fault: the last intact one loads."""

import builtins
import hashlib
import os
import pickle
import subprocess
import sys

import pytest
import torch
from train.players import assert_same_state

from gan_fast import files
from gan_fast.files import FileError, previous_of, write_safely
from gan_fast.models import DCGANGenerator
from gan_fast.train import checkpoint
from gan_fast.train.checkpoint import CheckpointError, load_checkpoint, load_generator, save_checkpoint, save_generator

MODEL = {"latent_dim": 4, "channels": 1, "image_size": 16, "width": 2}


def state(number):
    return {"step": number, "weights": torch.full((50,), float(number)), "config": '{"seed": 0}'}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    return path


def no_warning(message):
    raise AssertionError(f"unexpected warning: {message}")


def test_only_the_last_two_checkpoints_are_kept(path):
    assert_same_state(load_checkpoint(path, no_warning), state(2))
    assert_same_state(load_checkpoint(previous_of(path), no_warning), state(1))
    assert sorted(os.listdir(path.parent)) == ["checkpoint.previous.pt", "checkpoint.pt"]


def flip(content, index):
    return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]


def signed(payload):
    return payload + hashlib.sha256(payload).digest() + b"GANFAST1"


DAMAGE = {
    "first byte flipped": (lambda c: flip(c, 0), "SHA-256"),
    "byte of a tensor flipped": (lambda c: flip(c, len(c) // 2), "SHA-256"),
    "byte of the hash flipped": (lambda c: flip(c, len(c) - 20), "SHA-256"),
    "byte of the format name flipped": (lambda c: flip(c, len(c) - 1), "not a gan_fast checkpoint, or truncated"),
    "second half missing": (lambda c: c[: len(c) // 2], "truncated"),
    "last byte missing": (lambda c: c[:-1], "truncated"),
    "five bytes only": (lambda c: c[:5], "truncated"),
    "empty": (lambda c: b"", "truncated"),
    "one byte appended": (lambda c: c + b"x", "truncated"),
    "valid hash of other content": (lambda c: signed(b"not the output of torch.save"), "cannot be loaded safely"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoint_is_reported_and_the_previous_one_loads(path, name):
    damage, reason = DAMAGE[name]
    path.write_bytes(damage(path.read_bytes()))
    said = []
    assert_same_state(load_checkpoint(path, said.append), state(1))
    assert len(said) == 1
    assert str(path) in said[0]
    assert reason in said[0]
    assert "using the previous checkpoint, checkpoint.previous.pt" in said[0]
    previous_of(path).unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.previous\.pt: cannot be read"):
        load_checkpoint(path, no_warning)


def test_missing_checkpoint_falls_back_to_the_previous_one(path):
    # The state after a kill between the two renames.
    path.unlink()
    said = []
    assert load_checkpoint(path, said.append)["step"] == 1
    assert "cannot be read (No such file or directory)" in said[0]


def test_every_flipped_byte_is_detected(path):
    content = path.read_bytes()
    tried = range(0, len(content), 7)
    for index in tried:
        path.write_bytes(flip(content, index))
        assert load_checkpoint(path, lambda message: None)["step"] == 1
    assert len(tried) > 200


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return builtins.open, (str(self.target), "w")


@pytest.mark.parametrize("form", ["torch.save", "pickle"])
def test_malicious_pickle_is_refused_without_running_code(path, tmp_path, form):
    target = tmp_path / "executed"
    if form == "torch.save":
        # The hash is valid: an attacker who can write the file can also write its hash.
        save_checkpoint(path, {"step": Malicious(target)})
    else:
        path.write_bytes(signed(pickle.dumps(Malicious(target))))
    previous_of(path).unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        load_checkpoint(path)
    assert not target.exists()


def raise_error(error):
    def call(*args, **kwargs):
        raise error

    return call


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ((torch, "save"), RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")),
        ((torch, "save"), OSError(28, "No space left on device")),
        ((os, "fsync"), OSError(28, "No space left on device")),
        ((os, "replace"), OSError(5, "Input/output error")),
    ],
)
def test_full_disk_leaves_the_checkpoint_unchanged(path, monkeypatch, target, error):
    with monkeypatch.context() as patch:
        patch.setattr(*target, raise_error(error))
        with pytest.raises(FileError, match=r"checkpoint.pt: cannot be saved \(.*\); an existing file is unchanged"):
            save_checkpoint(path, state(3))
    assert_same_state(load_checkpoint(path, no_warning), state(2))
    assert sorted(os.listdir(path.parent)) == ["checkpoint.previous.pt", "checkpoint.pt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_torch_save_to_dev_full_is_a_file_error(path, monkeypatch):
    temporary = path.with_name("checkpoint.pt.tmp")
    temporary.symlink_to("/dev/full")
    with pytest.raises(FileError, match="cannot be saved"):
        save_checkpoint(path, state(3))
    assert_same_state(load_checkpoint(path, no_warning), state(2))


# Forks processes that save, and kills each at a random moment. Forking imports torch only once.
KILLER = """
import os, random, signal, sys, time, torch
from pathlib import Path
from gan_fast.train.checkpoint import load_checkpoint, save_checkpoint
torch.set_num_threads(1)
path, moments = Path(sys.argv[1]), random.Random(0)
finished = 0
for trial in range(int(sys.argv[2])):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for number in range(finished + 1, 10**6):
            save_checkpoint(path, {"step": number, "weights": torch.full((2**16,), float(number))})
            os.write(writer, b"%d " % number)
    os.close(writer)
    with open(reader) as lines:
        first = lines.read(1)
        time.sleep(moments.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved = int((first + lines.read()).split()[-1])
    loaded = load_checkpoint(path, lambda message: None)
    # After a kill between the two renames the save before loads; after both, a save that was not yet reported.
    assert loaded["step"] in (saved, saved + 1), (loaded["step"], saved)
    assert bool((loaded["weights"] == loaded["step"]).all())
    finished = loaded["step"]
    print(trial)
"""


def test_kill_while_saving_never_loses_a_finished_save(tmp_path):
    command = [sys.executable, "-c", KILLER, str(tmp_path / "checkpoint.pt"), "40"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 40


# Dies at each system call of a save: a kill at a random moment rarely hits these.
@pytest.mark.parametrize("call", ["save", "fsync", "first replace", "second replace", "fsync of the folder"])
def test_kill_at_any_system_call_of_a_save_loses_nothing(path, monkeypatch, call):
    class Killed(BaseException):
        pass

    calls = {"fsync": 0, "replace": 0}
    fsync, replace = os.fsync, os.replace

    def die_or(name, do, die_at):
        def wrapped(*args):
            calls[name] += 1
            if calls[name] == die_at:
                raise Killed
            return do(*args)

        return wrapped

    with monkeypatch.context() as patch:
        if call == "save":
            patch.setattr(torch, "save", raise_error(Killed()))
        patch.setattr(os, "fsync", die_or("fsync", fsync, {"fsync": 1, "fsync of the folder": 2}.get(call)))
        patch.setattr(os, "replace", die_or("replace", replace, {"first replace": 1, "second replace": 2}.get(call)))
        with pytest.raises(Killed):
            save_checkpoint(path, state(3))
    assert load_checkpoint(path, lambda message: None)["step"] == (3 if call == "fsync of the folder" else 2)
    save_checkpoint(path, state(4))
    assert load_checkpoint(path, no_warning)["step"] == 4


def test_generator_is_rebuilt_from_its_file_only(tmp_path):
    generator, path = DCGANGenerator(**MODEL), tmp_path / "generator.safetensors"
    save_generator(path, generator, MODEL)
    rebuilt = load_generator(path)
    assert_same_state(dict(rebuilt.state_dict()), dict(generator.state_dict()))
    assert not rebuilt.training
    z = torch.randn(2, 4)
    assert torch.equal(rebuilt(z), generator.eval()(z))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: flip(c, len(c) - 1), "its SHA-256 differs from the one it was saved with"),
        (lambda c: flip(c, 0), "damaged"),
        (lambda c: flip(c, 12), "damaged"),
        (lambda c: c[: len(c) // 2], "damaged"),
        (lambda c: b"", "damaged"),
        (lambda c: checkpoint.safetensors_save({"w": torch.ones(2)}), "not a generator saved by gan_fast"),
    ],
)
def test_damaged_generator_is_refused(tmp_path, damage, reason):
    path = tmp_path / "generator.safetensors"
    save_generator(path, DCGANGenerator(**MODEL), MODEL)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=reason):
        load_generator(path)


def test_missing_generator_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none.safetensors: cannot be read \(No such file"):
        load_generator(tmp_path / "none.safetensors")


def test_write_safely_needs_an_existing_folder(tmp_path):
    with pytest.raises(FileError, match="cannot be saved"):
        write_safely(tmp_path / "none" / "file", lambda file: None)


def test_write_safely_works_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "open", refuse)
    write_safely(tmp_path / "file", lambda file: file.write(b"content"))
    assert (tmp_path / "file").read_bytes() == b"content"
