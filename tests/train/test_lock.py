"""Only one training at a time locks a folder, and every way it can end releases the lock."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gan_fast.train import lock
from gan_fast.train.config import RunConfig, RunError, TrainConfig
from gan_fast.train.lock import LOCK_NAME, FolderInUseError, FolderLock, hold_folder
from gan_fast.train.run import Run

HOLD = """
import sys, time
from pathlib import Path
from gan_fast.train.lock import FolderLock
held = FolderLock(Path(sys.argv[1]), print)
print("held", flush=True)
time.sleep(600)
"""


def no_warning(message):
    raise AssertionError(f"unexpected warning: {message}")


def assert_not_locked(folder):
    FolderLock(folder, no_warning).release()


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_process_is_refused_and_the_first_named(holder, tmp_path):
    before = (tmp_path / "run" / LOCK_NAME).read_bytes()
    for resume in (False, True):
        (tmp_path / "run" / "config.json").unlink(missing_ok=True)
        if resume:
            (tmp_path / "run" / "config.json").write_text('{"config": {"data": "digits"}}')
        with pytest.raises(FolderInUseError, match=rf"in use by process {holder.pid} on \S+ since \d{{4}}-"):
            hold_folder(tmp_path / "run", resume=resume, warn=no_warning)
    assert (tmp_path / "run" / LOCK_NAME).read_bytes() == before


def test_lock_applies_to_every_path_to_the_folder(holder, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for path in ("link", "run", "./run/", "run/../run"):
        with pytest.raises(FolderInUseError):
            FolderLock(type(tmp_path)(path), no_warning)
    os.rename("run", "moved")
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path / "moved", no_warning)


def test_killed_process_releases_the_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK_NAME).exists()
    assert_not_locked(tmp_path / "run")


def test_exactly_one_of_many_threads_gets_the_lock(tmp_path):
    barrier, held, refused = threading.Barrier(8), [], []

    def start():
        barrier.wait()
        try:
            held.append(FolderLock(tmp_path / "a" / "run", no_warning))
        except FolderInUseError as error:
            refused.append(error)

    for _ in range(20):
        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(held), len(refused)) == (1, 7)
        held.pop().release()
        refused.clear()


def test_release_keeps_a_folder_that_is_not_empty(tmp_path):
    with FolderLock(tmp_path / "run", no_warning):
        (tmp_path / "run" / "file").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]
    with FolderLock(tmp_path / "run", no_warning) as held:
        os.rename(tmp_path / "run", tmp_path / "moved")
    held.release()


def test_garbage_collection_releases_the_lock(tmp_path):
    held = FolderLock(tmp_path, no_warning)
    del held
    gc.collect()
    assert_not_locked(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forked_child_does_not_hold_the_lock(tmp_path):
    held = FolderLock(tmp_path, no_warning)
    ready, wait = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        held.release()  # has no effect in a child
        os.write(ready[1], b"x")
        os.read(wait[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(FolderInUseError):
            FolderLock(tmp_path, no_warning)
        held.release()
        assert_not_locked(tmp_path)
    finally:
        os.write(wait[1], b"x")
        os.waitpid(child, 0)
        for descriptor in (*ready, *wait):
            os.close(descriptor)


def test_subprocess_does_not_hold_the_lock(tmp_path):
    with FolderLock(tmp_path, no_warning), subprocess.Popen(["sleep", "5"], close_fds=False) as child:
        time.sleep(0.05)
    assert_not_locked(tmp_path)
    child.wait()


@pytest.mark.parametrize("missing", ["platform", "file system"])
def test_missing_support_for_locks_is_a_warning(tmp_path, monkeypatch, missing):
    if missing == "platform":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(38, "not implemented")))
    said = []
    with FolderLock(tmp_path / "run", said.append):
        assert list((tmp_path / "run").iterdir()) == []
    assert len(said) == 1
    assert "cannot be locked" in said[0]
    assert "make sure that no other process trains in it" in said[0]
    assert not (tmp_path / "run").exists()


def test_dangling_link_is_an_error(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"can be created and written, got .*run: No such file"):
        hold_folder(tmp_path / "run", resume=False, warn=no_warning)


def small(out, steps=2):
    train = TrainConfig(steps=steps, batch_size=4, latent_dim=4, device="cpu")
    return RunConfig("digits", out, train, image_size=16, width=2, class_coverage=False)


def test_run_locks_its_folder_until_it_has_trained(tmp_path):
    config = small(tmp_path / "run")
    run = Run(config, say=lambda line: None)
    with pytest.raises(FolderInUseError):
        Run(config, resume=True)
    run.train()
    assert run.train() is None
    other = Run(small(tmp_path / "run", steps=3), resume=True, say=lambda line: None)
    with pytest.raises(FolderInUseError):
        run.train()
    other.train()
    with pytest.raises(RunError, match="newer checkpoint; make a new Run with resume"):
        run.train()
    assert_not_locked(tmp_path / "run")


def test_collected_or_failed_run_releases_the_lock(tmp_path):
    run = Run(small(tmp_path / "a"), say=lambda line: None)
    del run
    gc.collect()
    assert_not_locked(tmp_path / "a")
    errors = []
    try:
        Run(RunConfig(str(tmp_path / "nothing"), tmp_path / "b" / "c"))
    except ValueError as error:
        errors.append(error)  # kept, because its traceback refers to the run
    assert errors
    assert not (tmp_path / "b").exists()
