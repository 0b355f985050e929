"""Lock a run's folder, so that two trainings never write to it at the same time."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gan_fast.train.config import RunError, read_record

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = "run.lock"
_ATTEMPTS = 100


class FolderInUseError(RunError):
    """Another training has locked the folder; the message names its process, host and start time."""


def hold_folder(folder: Path, *, resume: bool, warn: Callable[[str], None]) -> FolderLock:
    """Lock a run's folder, and create it if it is missing.

    Args:
        folder: the folder.
        resume: True: the folder must hold a run. False: it must not.
        warn: called with one line if folders cannot be locked here.

    Raises:
        FolderInUseError: another training has locked the folder.
        RunError: the path is not a folder or cannot be written, or ``resume`` does not match the content.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"--out: expected a folder, got the file {folder}")
        if resume:
            read_record(folder)  # raises before anything is created
        lock = FolderLock(folder, warn)
    except OSError as error:
        raise RunError(
            f"--out: expected a folder that can be created and written, got {folder}: {error.strerror}"
        ) from error
    if not resume and any((folder / name).exists() for name in ("config.json", "checkpoint.pt")):
        lock.release()
        raise RunError(
            f"--out: expected a folder without a run, got {folder}, which holds one; "
            "continue that run with --resume, or choose another folder"
        )
    return lock


class FolderLock:
    """An exclusive lock on a folder, which is created if it is missing.

    The lock ends with :meth:`release`, when the object is garbage-collected, and when the process dies in any way. The
    first two also remove the lock file, and any folders that were created for the lock and are still empty.

    Args:
        folder: the folder to lock; missing parents are created too.
        warn: called with one line if the file system or the platform has no locks. Nothing is locked then.

    Raises:
        FolderInUseError: another process, or another object in this one, has locked the folder. Nothing was changed.
        OSError: the folder cannot be created or written.

    Notes:
        Uses flock on a file in the folder, so that every path to the folder leads to the same lock. A forked child does
        not inherit the lock. Over NFS, the lock is held on the server and also applies to other hosts; after a crash of
        a host, the server releases its locks with a delay.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._held = _Held(folder / LOCK_NAME)
        self.release = weakref.finalize(self, _Held.release, self._held)
        try:
            self._held.acquire(warn)
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.release()


class _Held:
    """The open lock file and the created folders. Separate from the lock, because a finalizer must not refer to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None
        self.created: list[Path] = []

    def acquire(self, warn: Callable[[str], None]) -> None:
        for _ in range(_ATTEMPTS):
            self._create_folder()
            try:
                # No O_TRUNC: the file may describe the process that holds the lock.
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                if self.path.parent.is_symlink():
                    raise  # a dangling link
                continue  # another start created the folder, failed, and removed it again
            if not self._lock(descriptor, warn):
                return
            if _is_at(descriptor, self.path):
                break
            os.close(descriptor)  # the holder removed the file after it was opened here
        else:
            raise OSError(errno.EAGAIN, "cannot be locked, because it is repeatedly removed", str(self.path))
        self.descriptor = descriptor
        _all_held.add(self)
        os.ftruncate(descriptor, 0)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode())

    def _create_folder(self) -> None:
        missing = []
        folder = self.path.parent
        while not folder.exists() and folder != folder.parent:
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another start created it first
                folder.mkdir()
                self.created.append(folder)

    def _lock(self, descriptor: int, warn: Callable[[str], None]) -> bool:
        """Lock the file; return False and close it if locks are not supported here."""
        reason = "this platform has no file locks"
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        except (BlockingIOError, PermissionError):
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise FolderInUseError(
                f"--out: expected a folder that no other training uses, got {self.path.parent}, "
                f"which is in use by {holder}; wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
        os.close(descriptor)
        self.path.unlink(missing_ok=True)
        warn(f"warning: {self.path.parent} cannot be locked ({reason}); make sure that no other process trains in it")
        return False

    def release(self) -> None:
        if self.descriptor is not None:
            # Remove the file before releasing the lock: a process that has already opened it then fails the path check.
            if _is_at(self.descriptor, self.path):
                with contextlib.suppress(OSError):  # a leftover file does not lock anything
                    self.path.unlink()
            os.close(self.descriptor)
            self.descriptor = None
        for folder in reversed(self.created):
            with contextlib.suppress(OSError):  # not empty, because it holds a run
                folder.rmdir()
        self.created = []

    def forget(self) -> None:
        """Drop the lock in a forked child: closing the file there does not release the parent's lock."""
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor, self.created = None, []


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


_all_held: weakref.WeakSet[_Held] = weakref.WeakSet()


def _forget_all() -> None:
    for held in list(_all_held):
        held.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
