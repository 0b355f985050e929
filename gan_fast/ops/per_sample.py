"""Share one backward pass through a critic between several losses of its outputs.

Let s_n be the critic's output for sample n. If the critic does not mix the samples of a batch, the gradients of two
losses L and M differ, in every layer, by one factor per sample: f_n = (dL / ds_n) / (dM / ds_n). So the backward pass
of M, with gradients g_n, can also compute the weight gradients of L: backward_weight(g_n f_n, x_n) for L and
backward_weight(g_n, x_n) for M. docs/penalties.md derives the savings.

In a forward pass under :func:`recorded`, the nodes of ops/conv.py save the :class:`Factors`, whose values are set
before the backward pass.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction, Function

from gan_fast.ops import recompute

_local = threading.local()


class Factors:
    """The factor of each sample's cotangent in the weight gradients, relative to the image gradients.

    Args:
        merged: the second backward pass applies them, through the graph that the first one builds while ``merging`` is
            set. Otherwise the first backward pass applies them.
    """

    def __init__(self, merged: bool) -> None:
        self.merged, self.merging = merged, False
        # Set before the backward pass that applies them.
        self.values: Tensor | None = None

    def times(self, t: Tensor) -> Tensor:
        """Return ``t``, (N or a multiple of N, ...), with each sample multiplied by its factor."""
        assert self.values is not None
        values = self.values.to(t.dtype)
        if len(t) != len(values):
            values = values.repeat_interleave(len(t) // len(values))
        return t * values.view(-1, *(1,) * (t.dim() - 1))


def recording() -> Factors | None:
    """Return the factors that nodes of the running forward pass must save, or None.

    None under saved-tensor hooks, because checkpointing recomputes the forward pass outside :func:`recorded`.
    """
    factors: Factors | None = getattr(_local, "factors", None)
    return factors if factors is None or recompute.allowed() else None


@contextlib.contextmanager
def recorded(factors: Factors) -> Iterator[None]:
    """Let the nodes that this thread creates inside the block save ``factors``."""
    previous, _local.factors = getattr(_local, "factors", None), factors
    try:
        yield
    finally:
        _local.factors = previous


# Autograd nodes that process each sample separately, by name, without "Backward" and the number of the variant. Nodes
# with a second derivative are allowed: their share of a penalty's gradient flows through the nodes of the forward pass.
_ELEMENTWISE = {
    "LeakyRelu", "Relu", "Elu", "Softplus", "Silu", "Gelu", "Mish", "Hardtanh", "Tanh", "Sigmoid", "Abs", "Neg", "Pow",
    "Sqrt", "Exp", "Log", "Clamp", "Add", "Sub", "Mul", "Div", "Rsub", "Clone", "ToCopy", "NativeDropout",
}  # fmt: skip
_BY_MAP = {
    "AvgPool2D", "AvgPool3D", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "MkldnnMaxPool2D", "AdaptiveAvgPool2D",
    "AdaptiveMaxPool2D", "ReflectionPad1D", "ReflectionPad2D", "ReplicationPad1D", "ReplicationPad2D",
    "UpsampleNearest2D", "UpsampleBilinear2D", "PixelShuffle", "PixelUnshuffle", "Unsqueeze",
}  # fmt: skip
# gan_fast's Functions that process each sample separately. Other Functions cannot be identified by their names.
_apart: set[type[Function]] = set()
# Reshapes keep the values of a sample together and the samples in order, even if the first dim changes.
_RESHAPES = {"View", "UnsafeView", "ReshapeAlias", "Squeeze"}


def keeps_samples_apart(function: type[Function]) -> type[Function]:
    """Declare that a Function processes each sample separately."""
    _apart.add(function)
    return function


def obstacle(outputs: Tensor, images: Tensor, factors: Factors) -> str | None:
    """Return the reason why a backward pass from ``outputs`` to ``images`` cannot apply ``factors``, or None.

    In the graph between them every parameter must be a weight or bias of a node that saved the factors, and no node may
    combine samples.
    """
    count = len(images)
    if count == 0 or outputs.numel() != count or outputs.dim() == 0 or len(outputs) != count:
        return "the critic does not return exactly one logit per sample"
    if outputs.grad_fn is None:
        return "the critic's output does not depend on anything that requires a gradient"
    end = images.grad_fn
    # Each node of the graph, with the nodes that use its output.
    users: dict[Any, list[Any]] = {outputs.grad_fn: []}
    pending, layers, weights, leaf = [outputs.grad_fn], [], [], None
    while pending:
        node: Any = pending.pop()
        if node is end or getattr(node, "variable", None) is images:
            leaf = node
            continue
        if hasattr(node, "variable"):
            return "a parameter is used outside of convolutions and linear layers"
        reason = _obstacle_of(node, count, factors)
        if reason is not None:
            return reason
        edges = [edge for edge, _ in node.next_functions]
        if _knows(node, factors):
            layers.append(node)
            weights += edges[1:]
            edges = edges[:1]
        for edge in edges:
            if edge is None:
                continue
            if edge not in users:
                users[edge] = []
                pending.append(edge)
            users[edge].append(node)
    # A backward pass to the images skips the layers that do not depend on them.
    reached, pending = set(), [leaf] if leaf is not None else []
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            pending += users[node]
    if not reached.issuperset(layers) or not reached:
        return "a convolution or linear layer does not depend on the images"
    return _obstacle_of_weights(weights, images, factors)


def _obstacle_of_weights(weights: list[Any], images: Tensor, factors: Factors) -> str | None:
    """The same for nodes that compute weights and biases, such as parametrizations."""
    for node in _ancestors(weights):
        if node is images.grad_fn or getattr(node, "variable", None) is images:
            return "a layer's weight is computed from the images"
        if _knows(node, factors):
            return "a layer's weight is computed by another layer"
    return None


def _ancestors(nodes: Sequence[Any]) -> Iterator[Any]:
    """Yield each node that ``nodes`` depend on once, and ``nodes`` themselves."""
    seen, pending = set(), list(nodes)
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending += [edge for edge, _ in node.next_functions]


def _knows(node: Any, factors: Factors) -> bool:
    return getattr(node, "factors", None) is factors


def _obstacle_of(node: Any, count: int, factors: Factors) -> str | None:
    shape = _shape(node)
    kind = node.name().rstrip("0123456789").removesuffix("Backward")
    if _knows(node, factors):
        # A linear layer over positions has several rows per sample.
        return None if shape[0] % count == 0 else "a layer's input does not have the samples in its first dimension"
    if isinstance(node, BackwardCFunction):
        if hasattr(node, "factors") and node.factors is None:
            return "a layer runs under activation checkpointing or other saved-tensor hooks"
        apart = node._forward_cls in _apart and len(shape) and shape[0] == count  # type: ignore[attr-defined]
        return None if apart else f"the shared pass does not support {_layer_name(kind, custom=True)}"
    if kind in _RESHAPES:
        before = getattr(node, "_saved_self_sym_sizes", shape)
        ordered = len(shape) and len(before) and shape[0] % count == 0 and before[0] % count == 0
        return None if ordered else "a reshape changes the batch dimension, as inside instance norm"
    if not len(shape) or shape[0] != count:
        return f"{_layer_name(kind)} changes the batch dimension"
    if kind in _ELEMENTWISE:
        # An input with fewer dims would have its samples in another dim of the result.
        inputs = [edge for edge, _ in node.next_functions if edge is not None]
        aligned = all(len(_shape(edge)) == len(shape) for edge in inputs)
        return None if aligned else f"{_layer_name(kind)} broadcasts the batch dimension"
    dim = _DIMS.get(kind)
    if kind in _BY_MAP or (dim is not None and dim(node, len(shape))):
        return None
    where = " along the batch dimension" if dim is not None else ""
    return f"the shared pass does not support {_layer_name(kind)}{where}"


_OUTSIDE = "under activation checkpointing, in TorchScript or with tensor subclasses"
_LAYER_NAMES = {
    "NativeGroupNorm": "group norm",
    "NativeLayerNorm": "layer norm",
    "ConstantPadNd": "padding",
    "Convolution": f"convolutions {_OUTSIDE}",
    **dict.fromkeys(("Addmm", "Mm", "Bmm"), f"matrix products other than linear layers, or linear layers {_OUTSIDE}"),
}


def _layer_name(kind: str, custom: bool = False) -> str:
    """What users call an autograd node of this kind."""
    if "BatchNorm" in kind:
        return "batch norm"
    if custom:
        return f"the custom autograd function {kind}"
    operation = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
    return _LAYER_NAMES.get(kind, f"the operation {operation}")


def _shape(node: Any) -> Sequence[int]:
    """Return the shape of a node's output in the forward pass, or of a leaf."""
    shape: Sequence[int] = node.variable.shape if hasattr(node, "variable") else node._input_metadata[0].shape
    return shape


# For nodes that act along given dims: whether these leave out the batch dim.
_DIMS: dict[str, Callable[[Any, int], bool]] = {
    "Cat": lambda node, dims: 0 not in _wrapped([node._saved_dim], dims),
    "Mean": lambda node, dims: _reduces_samples_alone(node),
    "Sum": lambda node, dims: _reduces_samples_alone(node),
    "Transpose": lambda node, dims: 0 not in _wrapped([node._saved_dim0, node._saved_dim1], dims),
    "ConstantPadNd": lambda node, dims: len(node._saved_pad) < 2 * dims,
    "Permute": lambda node, dims: _wrapped(node._saved_dims, dims)[0] == 0,
}


def _reduces_samples_alone(node: Any) -> bool:
    dims = getattr(node, "_saved_dim", None) or ()
    return bool(dims) and 0 not in _wrapped(dims, len(node._saved_self_sym_sizes))


def _wrapped(dims: Sequence[int], count: int) -> list[int]:
    """Return dims as non-negative numbers: torch shows saved negative dims as unsigned 64-bit integers."""
    return [(d - 2**64 if d >= 2**63 else d) % count for d in dims]


def normalizes_batch(outputs: Tensor, count: int) -> bool:
    """Whether the graph of ``outputs`` has a batch norm over ``count`` samples in training mode."""
    for node in _ancestors([outputs.grad_fn]):
        if "BatchNorm" in node.name():
            # Instance norm is a batch norm over a batch of one.
            training = node.options[0] if hasattr(node, "options") else getattr(node, "_saved_training", True)
            if training and (_shape(node)[0] == count):
                return True
    return False
