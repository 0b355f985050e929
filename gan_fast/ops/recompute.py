"""Save a recipe for an activation instead of the activation.

A convolution saves its input for the gradient of its weight. If that input is the output of ``batch_norm_act``, the
norm has already saved its own input and statistics, from which one cheap pass recomputes the activation bit for bit.
So the convolution saves a recipe instead. autograd still records which node the tensor came from, so the recomputed
tensor has the same position in the graph, and gradients of any order are those of the saved tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Recipe:
    """Recomputes a tensor from others; raises if one of them was modified in the meantime."""

    def __init__(self, compute: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        self._compute = compute
        self.inputs = tuple(t if t is None else t.detach() for t in inputs)
        self._versions = tuple(None if t is None else t._version for t in inputs)

    def __call__(self) -> Tensor:
        for index, (t, version) in enumerate(zip(self.inputs, self._versions)):
            if t is not None and t._version != version:
                # The beginning is torch's error for a saved tensor.
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{t.type()} {list(t.shape)}], which is input {index} of a recomputed activation, is at "
                    f"version {t._version}; expected version {version} instead"
                )
        with torch.no_grad():
            return self._compute(*self.inputs)


class _Slot:
    """The position of a recipe among a node's saved tensors."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        self.recipe, self.index, self.wanted = recipe, index, True

    def unpack(self) -> Tensor:
        if self.wanted:
            return self.recipe()
        # Autograd needs a tensor here, but its values are never read.
        return next(t for t in self.recipe.inputs if t is not None)


def allowed() -> bool:
    """Whether no saved-tensor hooks are active: checkpointing and offloading must see the tensors themselves."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def attach(copy: Tensor, compute: Callable[[Tensor], Tensor], source: Tensor) -> None:
    """Let nodes that save ``copy`` save a recipe ``compute(source)`` instead; ``source`` must be saved elsewhere."""
    if torch.is_grad_enabled() and not source.is_inference() and copy.data_ptr() != source.data_ptr():
        copy._gan_fast_recipe = Recipe(compute, source)  # type: ignore[attr-defined]


def keep_recipe(output: Tensor, index: int, input: Tensor) -> None:
    """Replace ``input`` among the tensors that the node of ``output`` saved by a recipe, if there is one.

    Args:
        output: just returned by an ``autograd.Function``.
        index: position of ``input`` among the tensors that the Function saved.
        input: has a recipe if :func:`attach` gave it one or if its node has an attribute ``recipe``.
    """
    if input.is_inference() or input._version != 0 or not allowed():
        return
    recipe = getattr(input, "_gan_fast_recipe", None) or _from_producer(input)
    if not isinstance(recipe, Recipe):
        return
    node: Any = output.grad_fn
    node.slot = slot = _Slot(recipe, index)
    node._raw_saved_tensors[index].register_hooks(lambda _: slot, _Slot.unpack)


# Replaces a saved tensor whose values are not needed; torch gives it that tensor's position in the graph.
_PLACE = torch.empty(0)


def keep_place(output: Tensor, index: int) -> None:
    """Drop the values of the output that the node of ``output`` saved, and keep its position in the graph."""
    if not allowed():
        return
    node: Any = output.grad_fn
    node._raw_saved_tensors[index].register_hooks(_pack_place, _unpack_place)


def _pack_place(t: Tensor) -> None:
    return None


def _unpack_place(_: None) -> Tensor:
    return _PLACE


def _from_producer(t: Tensor) -> Recipe | None:
    producer: Any = t.grad_fn
    recipe_of = getattr(producer, "recipe", None)
    if recipe_of is None or t.output_nr != 0:
        return None
    try:
        recipe = recipe_of(producer)
    except RuntimeError:
        # The graph was freed, so no backward pass can reach the producer.
        return None
    return recipe if isinstance(recipe, Recipe) else None


def saved_tensors(ctx: Any, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
    """Return a node's saved tensors. If one of them is a recipe, return None for those that are not ``wanted``."""
    slot: _Slot | None = getattr(ctx, "slot", None)
    if slot is None:
        saved: Sequence[Tensor | None] = ctx.saved_tensors
        return saved
    # Only ctx.saved_tensors can unpack a saved output, and it unpacks all tensors, so mark an unwanted recipe first.
    slot.wanted = wanted[slot.index]
    try:
        return [t if w else None for t, w in zip(ctx.saved_tensors, wanted)]
    finally:
        slot.wanted = True
