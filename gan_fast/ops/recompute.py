"""One tensor kept instead of two: an activation that its producer can compute again is not kept by its consumer.

A convolution keeps its input for the gradient by its weight. Where that input is the output of ``batch_norm_act``, the
norm keeps its own input and statistics anyhow, and one cheap pass computes the activation again, to the last bit. So
the consumer keeps a recipe in its place. autograd keeps beside it which node the tensor came from: what is computed in
backward has the same place in the graph, and gradients of any order flow as if the tensor had been kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Recipe:
    """A tensor as a function of others, which must not have changed when it is computed again."""

    def __init__(self, compute: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        self._compute = compute
        self.inputs = tuple(t if t is None else t.detach() for t in inputs)
        self._versions = tuple(None if t is None else t._version for t in inputs)

    def __call__(self) -> Tensor:
        for index, (t, version) in enumerate(zip(self.inputs, self._versions)):
            if t is not None and t._version != version:
                # The words of torch's own error for a kept tensor.
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{t.type()} {list(t.shape)}], which is input {index} of what computes an activation again, is at "
                    f"version {t._version}; expected version {version} instead"
                )
        with torch.no_grad():
            return self._compute(*self.inputs)


class _Slot:
    """Where among its saved tensors a node has a recipe."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        self.recipe, self.index, self.wanted = recipe, index, True

    def unpack(self) -> Tensor:
        if self.wanted:
            return self.recipe()
        # Any tensor that is there: nobody reads it.
        return next(t for t in self.recipe.inputs if t is not None)


def allowed() -> bool:
    """Whether nobody else has a say in how tensors are kept: under checkpointing or offloading they decide."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def attach(copy: Tensor, compute: Callable[[Tensor], Tensor], source: Tensor) -> None:
    """Tell what keeps ``copy``, a tensor of ours, that it is ``compute(source)``; somebody has the source anyway."""
    if torch.is_grad_enabled() and not source.is_inference() and copy.data_ptr() != source.data_ptr():
        copy._gan_fast_recipe = Recipe(compute, source)  # type: ignore[attr-defined]


def keep_recipe(output: Tensor, index: int, input: Tensor) -> None:
    """Let the node of ``output`` keep a recipe of ``input`` in place of the tensor, where its producer knows one.

    Args:
        output: just returned by an ``autograd.Function``.
        index: where among the tensors saved by that Function ``input`` stands.
        input: was given a recipe by :func:`attach`, or was produced by a node that has a function ``recipe`` of itself.
    """
    if input.is_inference() or input._version != 0 or not allowed():
        return
    recipe = getattr(input, "_gan_fast_recipe", None) or _from_producer(input)
    if not isinstance(recipe, Recipe):
        return
    node: Any = output.grad_fn
    node.slot = slot = _Slot(recipe, index)
    node._raw_saved_tensors[index].register_hooks(lambda _: slot, _Slot.unpack)


# Has the place in the graph of the tensor it is unpacked for: torch adds that. Its values and shape are never used.
_PLACE = torch.empty(0)


def keep_place(output: Tensor, index: int) -> None:
    """Let the node of ``output``, which saved its output, keep its place in the graph alone, and no values."""
    if not allowed():
        return
    node: Any = output.grad_fn
    node._raw_saved_tensors[index].register_hooks(_to_place, _from_place)


def _to_place(t: Tensor) -> None:
    return None


def _from_place(_: None) -> Tensor:
    return _PLACE


def _from_producer(t: Tensor) -> Recipe | None:
    producer: Any = t.grad_fn
    recipe_of = getattr(producer, "recipe", None)
    if recipe_of is None or t.output_nr != 0:
        return None
    try:
        recipe = recipe_of(producer)
    except RuntimeError:
        # Its graph is freed: nobody can walk through it any more.
        return None
    return recipe if isinstance(recipe, Recipe) else None


def saved_tensors(ctx: Any, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
    """Return what a node saved; where a recipe is among it, that is None instead of computed if it is not wanted."""
    slot: _Slot | None = getattr(ctx, "slot", None)
    if slot is None:
        saved: Sequence[Tensor | None] = ctx.saved_tensors
        return saved
    # A node's outputs are unpacked by its saved_tensors alone, which unpack all.
    slot.wanted = wanted[slot.index]
    try:
        return [t if w else None for t, w in zip(ctx.saved_tensors, wanted)]
    finally:
        slot.wanted = True
