"""The buffers of a model: what a plain ``load_state_dict`` into a new model would not bring back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.train.average import put_buffer
from gan_fast.train.undo import dense


def buffer_dicts(*models: nn.Module) -> list[dict[str, Tensor | None]]:
    """Return the dict of buffers of each module, where it has any or may get one."""
    return [module._buffers for module in dict.fromkeys(m for model in models for m in model.modules())]


def check_initialized(owner: str, model: nn.Module) -> None:
    """Raise unless a model is a module whose parameters and buffers all have a shape.

    Raises:
        TypeError: not a module.
        ValueError: a lazy module has not run yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{owner} type Module, got {type(model).__name__}")
    lazy = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if nn.parameter.is_lazy(t)]
    if lazy:
        raise ValueError(
            f"{owner} with initialized parameters, got lazy ones: {', '.join(lazy[:5])}"
            f"{f' and {len(lazy) - 5} more' if len(lazy) > 5 else ''}; run the model once on a batch before"
        )


class BufferRecord:
    """Which buffers a model had, and their shapes, when it was made."""

    def __init__(self, model: nn.Module) -> None:
        self._made = {name: _form(b) for name, (_, _, b) in _named(model).items()}

    def changes(self, model: nn.Module) -> dict[str, Tensor | None]:
        """Return, by name, the buffers that a state dict lacks or a new model would not take.

        Those that are not persistent, and those that were added, set to None, or got another shape or dtype.
        """
        return {
            name: None if b is None else b.detach()
            for name, (owner, key, b) in _named(model).items()
            if key in owner._non_persistent_buffers_set or self._made.get(name, ()) != _form(b)
        }

    def load(self, model: nn.Module, state: Mapping[str, Any], changes: Mapping[str, Tensor | None]) -> None:
        """Load a state dict of a model and the :meth:`changes` that belong to it.

        Raises:
            RuntimeError: the state is of another model.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        for name, (owner, key, b) in _named(model).items():
            form = self._made.get(name, ())
            if form == ():
                if name not in changes:
                    del owner._buffers[key]
            elif form != _form(b) and name not in changes:
                shape, dtype = form or ((), None)
                owner._buffers[key] = None if form is None else torch.empty(shape, dtype=dtype, device=device)
        for name, value in changes.items():
            at, _, key = name.rpartition(".")
            if at not in modules:
                raise RuntimeError(f"Trainer.load_state_dict: expected a model with the module {at!r}, got none")
            put_buffer(modules[at], key, None if value is None else value.to(device), name in state)
        expanded = [
            (owner, key, b) for owner, key, b in _named(model).values() if b is not None and dense(b, b) is not b
        ]
        for owner, key, b in expanded:
            # Loading writes to every element.
            owner._buffers[key] = b.clone(memory_format=torch.contiguous_format)
        model.load_state_dict(state)
        for owner, key, b in expanded:
            loaded = owner._buffers[key]
            assert loaded is not None
            dense(b, b).copy_(dense(loaded, b))
            if torch.equal(b, loaded):
                owner._buffers[key] = b


def _named(model: nn.Module) -> dict[str, tuple[nn.Module, str, Tensor | None]]:
    """The buffers of each module, None included, by their name in the state dict."""
    return {
        f"{at}.{key}" if at else key: (module, key, b)
        for at, module in model.named_modules()
        for key, b in module._buffers.items()
    }


def _form(buffer: Tensor | None) -> tuple[tuple[int, ...], torch.dtype] | None:
    return None if buffer is None else (tuple(buffer.shape), buffer.dtype)
