"""Undo what a skipped update did, decided on the device."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

_MISSING = object()


class Entries:
    """Which objects containers hold now, not the values of tensors among them."""

    def __init__(self, containers: Iterable[dict[Any, Any] | list[Any]]) -> None:
        self.before = [(container, container.copy()) for container in containers]

    def restore(self) -> None:
        for container, before in self.before:
            if isinstance(container, list):
                container[:] = before
            else:
                container.clear()
                container.update(before)


class Kept:
    """The values in containers now, to be put back later where a flag on the device says so.

    Args:
        containers: dicts and lists; what is nested in them is not visited. Each distinct tensor is copied once.
        shared: storages (:func:`storage_of`) of tensors to leave alone, because they are undone elsewhere.

    Notes:
        A tensor that was written in place, or replaced by one of the same shape, dtype and device, is put back by
        ``torch.where``, without waiting for the device. Any other change (a tensor of another shape, a new or missing
        entry, a Python number, a tensor on another device) is the host's to undo, which has to read the flag: only an
        iteration with such a change waits.
    """

    def __init__(self, containers: Iterable[dict[Any, Any] | list[Any]], shared: Collection[int] = ()) -> None:
        self._entries = Entries(containers)
        self._tensors: dict[int, tuple[Tensor, Tensor, int]] = {}
        for _, before in self._entries.before:
            for value in _entries(before).values():
                if isinstance(value, Tensor) and id(value) not in self._tensors and storage_of(value) not in shared:
                    self._tensors[id(value)] = value, dense(value, value).detach().clone(), value._version

    @torch.no_grad()
    def undo(self, flag: Tensor) -> str | None:
        """Put everything back where ``flag``, a boolean scalar on the device, is true.

        Returns:
            The change for which the host had to read the flag; None where there was no such change.

        Raises:
            RuntimeError: the host had to read the flag while a CUDA graph was captured.
        """
        change: str | None = None
        for tensor, saved, version in self._tensors.values():
            if not _put_back(tensor, saved, flag) and tensor._version != version:
                change = "a tensor that the device cannot put back was written to"
        for container, before in self._entries.before:
            now, then = _entries(container), _entries(before)
            for key, old in then.items():
                new = now.get(key, _MISSING)
                if new is old:
                    continue
                if isinstance(old, Tensor):
                    kept = self._tensors.get(id(old))
                    if kept is None or (isinstance(new, Tensor) and self._replace(container, key, new, old, flag)):
                        continue
                elif isinstance(old, (bool, int, float, complex, str)) and type(new) is type(old) and new == old:
                    continue
                change = f"{key!r} changed its shape, type or value"
            for key in now.keys() - then.keys():
                change = f"{key!r} was added"
        if change is not None and _read(flag, change):
            self._entries.restore()
            for tensor, saved, _ in self._tensors.values():
                dense(tensor, tensor).copy_(saved)
        return change

    def _replace(self, container: Any, key: Any, new: Tensor, old: Tensor, flag: Tensor) -> bool:
        """Put the values of ``old`` into the tensor that took its place, if that can be done on the device."""
        saved = self._tensors[id(old)][1]
        if not alike(new, old):
            return False
        if _has_overlap(new) or saved.shape != new.shape:
            container[key] = torch.where(flag, saved, new.detach())
            return True
        return _put_back(new, saved, flag)


def storage_of(tensor: Tensor) -> int:
    """An id of the memory that a tensor is a view of: equal for tensors that share it."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether both have the same shape, dtype, layout and device."""
    return a.shape == b.shape and a.dtype == b.dtype and a.layout == b.layout and a.device == b.device


def dense(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of ``tensor`` that holds every value of it if it is expanded as ``like`` is."""
    if _has_overlap(like):
        for dim, stride in enumerate(like.stride()):
            if stride == 0:
                tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
    return tensor


def _has_overlap(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or 0 not in tensor.stride():
        return False
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _put_back(tensor: Tensor, saved: Tensor, flag: Tensor) -> bool:
    """Write ``saved`` into ``tensor`` where ``flag`` is true; False where the device cannot do that."""
    target = dense(tensor, tensor)
    if target.layout is not torch.strided or target.is_quantized or target.device != flag.device:
        return False
    if target.shape != saved.shape:
        return False
    target.copy_(torch.where(flag, saved, target))
    return True


def _entries(container: dict[Any, Any] | list[Any]) -> dict[Any, Any]:
    return container if isinstance(container, dict) else dict(enumerate(container))


def _read(flag: Tensor, change: str) -> bool:
    try:
        return bool(flag)
    except RuntimeError as error:
        raise RuntimeError(f"{change} in the step, so the host has to read whether the step is skipped") from error
