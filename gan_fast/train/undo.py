"""Restore what a skipped update changed, without reading on the host whether it was skipped."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

_MISSING = object()


class SavedEntries:
    """Which objects containers hold now; the values of tensors among them are not copied."""

    def __init__(self, containers: Iterable[dict[Any, Any] | list[Any]]) -> None:
        self.before = [(container, container.copy()) for container in containers]

    def restore(self) -> None:
        for container, before in self.before:
            if isinstance(container, list):
                container[:] = before
            else:
                container.clear()
                container.update(before)


class SavedValues:
    """A copy of what containers hold now, to restore later if a flag on the device is true.

    Args:
        containers: dicts and lists; containers nested in them are not visited. Each distinct tensor is copied once.
        excluded_storages: storages (:func:`storage_id`) of tensors that are restored elsewhere, so not copied here.

    Notes:
        A tensor that was written in place, or replaced by one of the same shape, dtype and device, is restored with
        ``torch.where``, without waiting for the device. Any other change (a tensor of another shape or on another
        device, an added or removed entry, a changed Python number) can only be reverted by the host, which must read
        the flag first. So the host waits only after an iteration with such a change.
    """

    def __init__(
        self, containers: Iterable[dict[Any, Any] | list[Any]], excluded_storages: Collection[int] = ()
    ) -> None:
        self._entries = SavedEntries(containers)
        self._tensors: dict[int, tuple[Tensor, Tensor, int]] = {}
        for _, before in self._entries.before:
            for value in _items(before).values():
                if (
                    isinstance(value, Tensor)
                    and id(value) not in self._tensors
                    and storage_id(value) not in excluded_storages
                ):
                    self._tensors[id(value)] = value, unexpanded(value, value).detach().clone(), value._version

    @torch.no_grad()
    def restore_if(self, flag: Tensor) -> str | None:
        """Restore everything if ``flag``, a boolean scalar on the device, is true.

        Returns:
            A description of the change that made the host read the flag; None if it did not have to.

        Raises:
            RuntimeError: the host had to read the flag during the capture of a CUDA graph.
        """
        change: str | None = None
        for tensor, saved, version in self._tensors.values():
            if not _restore_on_device(tensor, saved, flag) and tensor._version != version:
                change = "a tensor that cannot be restored on the device was written in place"
        for container, before in self._entries.before:
            now, then = _items(container), _items(before)
            for key, old in then.items():
                new = now.get(key, _MISSING)
                if new is old:
                    continue
                if isinstance(old, Tensor):
                    saved_tensor = self._tensors.get(id(old))
                    if saved_tensor is None or (
                        isinstance(new, Tensor) and self._restore_replaced(container, key, new, old, flag)
                    ):
                        continue
                elif isinstance(old, (bool, int, float, complex, str)) and type(new) is type(old) and new == old:
                    continue
                change = f"{key!r} changed its shape, type or value"
            for key in now.keys() - then.keys():
                change = f"{key!r} was added"
        if change is not None and _read_flag(flag, change):
            self._entries.restore()
            for tensor, saved, _ in self._tensors.values():
                unexpanded(tensor, tensor).copy_(saved)
        return change

    def _restore_replaced(self, container: Any, key: Any, new: Tensor, old: Tensor, flag: Tensor) -> bool:
        """Write the saved values of ``old`` into its replacement ``new``; return False if the device cannot."""
        saved = self._tensors[id(old)][1]
        if not same_metadata(new, old):
            return False
        if _is_expanded(new) or saved.shape != new.shape:
            container[key] = torch.where(flag, saved, new.detach())
            return True
        return _restore_on_device(new, saved, flag)


def storage_id(tensor: Tensor) -> int:
    """Return an id of the memory behind a tensor: equal for tensors that share it."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def same_metadata(a: Tensor, b: Tensor) -> bool:
    """Return whether both have the same shape, dtype, layout and device."""
    return a.shape == b.shape and a.dtype == b.dtype and a.layout == b.layout and a.device == b.device


def unexpanded(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` with each dim that ``like`` expands (stride 0) narrowed to one element.

    Writing to an expanded tensor is an error, as several of its elements share one place in memory.
    """
    if _is_expanded(like):
        for dim, stride in enumerate(like.stride()):
            if stride == 0:
                tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
    return tensor


def _is_expanded(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or 0 not in tensor.stride():
        return False
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _restore_on_device(tensor: Tensor, saved: Tensor, flag: Tensor) -> bool:
    """Write ``saved`` into ``tensor`` where ``flag`` is true; return False if the device cannot."""
    target = unexpanded(tensor, tensor)
    if target.layout is not torch.strided or target.is_quantized or target.device != flag.device:
        return False
    if target.shape != saved.shape:
        return False
    target.copy_(torch.where(flag, saved, target))
    return True


def _items(container: dict[Any, Any] | list[Any]) -> dict[Any, Any]:
    return container if isinstance(container, dict) else dict(enumerate(container))


def _read_flag(flag: Tensor, change: str) -> bool:
    try:
        return bool(flag)
    except RuntimeError as error:
        raise RuntimeError(f"{change} in the step, so the host must read whether the step is skipped") from error
