"""Save and load buffers that ``load_state_dict`` of a newly made model would miss or refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.train.average import set_buffer
from gan_fast.train.undo import unexpanded


def buffer_dicts(*models: nn.Module) -> list[dict[str, Tensor | None]]:
    """Return the dict of buffers of every module, also where it is empty: a step may add buffers."""
    return [module._buffers for module in dict.fromkeys(m for model in models for m in model.modules())]


def check_initialized(owner: str, model: nn.Module) -> None:
    """Raise unless a model is a module whose parameters and buffers all have a shape.

    Raises:
        TypeError: not a module.
        ValueError: a lazy module has not run yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{owner} type torch.nn.Module, got {type(model).__name__}")
    lazy = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if nn.parameter.is_lazy(t)]
    if lazy:
        raise ValueError(
            f"{owner} with initialized parameters, got uninitialized {', '.join(lazy[:5])}"
            f"{f' and {len(lazy) - 5} more' if len(lazy) > 5 else ''}; run the model on one batch first"
        )


class BufferRecord:
    """The names, shapes and dtypes of a model's buffers at the time when the record was made."""

    def __init__(self, model: nn.Module) -> None:
        self._initial = {name: _shape_and_dtype(b) for name, (_, _, b) in _named_buffers(model).items()}

    def changes(self, model: nn.Module) -> dict[str, Tensor | None]:
        """Return, by name, the buffers that the state dict lacks or that a newly made model would refuse.

        These are the non-persistent ones, and those that were added, set to None, or got another shape or dtype.
        """
        return {
            name: None if b is None else b.detach()
            for name, (owner, key, b) in _named_buffers(model).items()
            if key in owner._non_persistent_buffers_set or self._initial.get(name, ()) != _shape_and_dtype(b)
        }

    def load(self, model: nn.Module, state: Mapping[str, Any], changes: Mapping[str, Tensor | None]) -> None:
        """Load a state dict of a model and the :meth:`changes` that were saved with it.

        Raises:
            RuntimeError: the state is of another model.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        # Undo what this model changed since it was made, unless `changes` sets the buffer anyway.
        for name, (owner, key, b) in _named_buffers(model).items():
            initial = self._initial.get(name, ())
            if initial == ():
                if name not in changes:
                    del owner._buffers[key]
            elif initial != _shape_and_dtype(b) and name not in changes:
                shape, dtype = initial or ((), None)
                owner._buffers[key] = None if initial is None else torch.empty(shape, dtype=dtype, device=device)
        for name, value in changes.items():
            at, _, key = name.rpartition(".")
            if at not in modules:
                raise RuntimeError(
                    f"Trainer.load_state_dict: expected a model with the module {at!r}, as in the state, got none"
                )
            set_buffer(modules[at], key, None if value is None else value.to(device), name in state)
        # load_state_dict writes to every element, which an expanded buffer does not allow.
        expanded = [
            (owner, key, b)
            for owner, key, b in _named_buffers(model).values()
            if b is not None and unexpanded(b, b) is not b
        ]
        for owner, key, b in expanded:
            owner._buffers[key] = b.clone(memory_format=torch.contiguous_format)
        model.load_state_dict(state)
        for owner, key, b in expanded:
            loaded = owner._buffers[key]
            assert loaded is not None
            unexpanded(b, b).copy_(unexpanded(loaded, b))
            if torch.equal(b, loaded):
                owner._buffers[key] = b


def _named_buffers(model: nn.Module) -> dict[str, tuple[nn.Module, str, Tensor | None]]:
    """Return (module, key, buffer) by name in the state dict, with buffers that are None."""
    return {
        f"{at}.{key}" if at else key: (module, key, b)
        for at, module in model.named_modules()
        for key, b in module._buffers.items()
    }


def _shape_and_dtype(buffer: Tensor | None) -> tuple[tuple[int, ...], torch.dtype] | None:
    return None if buffer is None else (tuple(buffer.shape), buffer.dtype)
