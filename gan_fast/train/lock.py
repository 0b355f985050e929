"""The lock that keeps a second training out of a run's folder."""

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
    """Another training holds the folder; the message says which."""


def hold_folder(folder: Path, *, resume: bool, warn: Callable[[str], None]) -> FolderLock:
    """Lock a run's folder; a new run's is created.

    Args:
        folder: where to train.
        resume: whether it holds the run that goes on, or must hold none.
        warn: as for :class:`FolderLock`.

    Raises:
        FolderInUseError: another training holds the folder.
        RunError: it is not a folder, cannot be written, holds a run and ``resume`` is not set, or none and it is.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"train: expected out a folder, got the file {folder}")
        if resume:
            read_record(folder)  # raises before anything is created
        lock = FolderLock(folder, warn)
    except OSError as error:
        raise RunError(
            f"train: expected out a folder that can be created and written, got {folder}: {error.strerror}"
        ) from error
    if not resume and any((folder / name).exists() for name in ("config.json", "checkpoint.pt")):
        lock.release()
        raise RunError(
            f"train: expected out a folder without a run, got {folder}, which holds one; "
            "continue it with --resume, or choose another folder"
        )
    return lock


class FolderLock:
    """Create a folder where it is missing, and hold it exclusively.

    Released by :meth:`release`, when the object is collected, and by the kernel when the process dies, however it dies.
    Then the lock's file is removed, and those folders that were created for it and are still empty.

    Args:
        folder: what to hold; its missing parents are created too.
        warn: is told a line where the file system or the platform has no such locks. Nothing is held then.

    Raises:
        FolderInUseError: another process, or another object of this one, holds it. Nothing was changed.
        OSError: the folder cannot be created or written.

    Notes:
        flock on a file in the folder, so every path to the folder meets the same lock. A forked child does not inherit
        it. Over NFS the kernel makes a lock on the server of it, which processes on other hosts meet, and which the
        server drops some time after a host has crashed.
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
    """The open file of a lock, and what to remove with it; apart from the lock so that a finalizer can refer to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None
        self.created: list[Path] = []

    def acquire(self, warn: Callable[[str], None]) -> None:
        for _ in range(_ATTEMPTS):
            self._create_folder()
            try:
                # Without O_TRUNC: the file may describe the process that holds it.
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                if self.path.parent.is_symlink():
                    raise  # of a link to nothing
                continue  # another start created the folder, failed, and removed it
            if not self._lock(descriptor, warn):
                return
            if _is_at(descriptor, self.path):
                break
            os.close(descriptor)  # its holder removed it after it was opened here
        else:
            raise OSError(errno.EAGAIN, "cannot be locked: it is created and removed over and over", str(self.path))
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
            with contextlib.suppress(FileExistsError):  # another start was quicker
                folder.mkdir()
                self.created.append(folder)

    def _lock(self, descriptor: int, warn: Callable[[str], None]) -> bool:
        """Lock the file and tell whether locks exist here; close it where it is not locked."""
        reason = "this platform has no such locks"
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        except (BlockingIOError, PermissionError):
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise FolderInUseError(
                f"train: expected out a folder that no other training uses, got {self.path.parent}, "
                f"which is in use by {holder}; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
        os.close(descriptor)
        self.path.unlink(missing_ok=True)
        warn(f"{self.path.parent} cannot be locked ({reason}): make sure that no other process trains in it")
        return False

    def release(self) -> None:
        if self.descriptor is not None:
            # While it is held: a file that another process has opened by now fails its check of the path.
            if _is_at(self.descriptor, self.path):
                with contextlib.suppress(OSError):  # a file left behind is not a lock
                    self.path.unlink()
            os.close(self.descriptor)
            self.descriptor = None
        for folder in reversed(self.created):
            with contextlib.suppress(OSError):  # not empty: a run is in it
                folder.rmdir()
        self.created = []

    def forget(self) -> None:
        """In a forked child: close the file, which does not unlock it, and leave everything to the parent."""
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
