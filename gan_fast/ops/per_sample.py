"""One backward pass through a critic that serves several losses of its outputs.

Where a critic does not couple the samples of a batch, the cotangents that a loss sends down from sample n are those of
any other loss times a number of that sample: f_n = (dL / ds_n) / (dM / ds_n), with s_n the sample's output. So whatever
walks down with the cotangents of M can give the gradients of L by the weights on its way, each layer's from the same
tensors: backward_weight(g_n f_n, x_n), where M's are backward_weight(g_n, x_n). docs/penalties.md derives what this
saves.

The nodes of ops/conv.py look here: a forward pass under :func:`recorded` lets them know the :class:`Factors` that the
backward pass is given later.
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

_own = threading.local()


class Factors:
    """For each sample, what the gradients by the weights take more of a cotangent than those by the images.

    Args:
        merged: they are of a loss that another backward pass serves on its way, that through the graph which nodes
            leave behind while ``merging`` is set. Else of the one pass that there is.
    """

    def __init__(self, merged: bool) -> None:
        self.merged, self.merging = merged, False
        # Known when the pass that they are for begins.
        self.values: Tensor | None = None

    def times(self, t: Tensor) -> Tensor:
        """Return a tensor of (N or a multiple of it, ...) with each sample times its factor."""
        assert self.values is not None
        values = self.values.to(t.dtype)
        if len(t) != len(values):
            values = values.repeat_interleave(len(t) // len(values))
        return t * values.view(-1, *(1,) * (t.dim() - 1))


def recording() -> Factors | None:
    """The factors that nodes of the running forward pass must keep, if any.

    Not under saved-tensor hooks: what checkpointing computes again it computes elsewhere.
    """
    factors: Factors | None = getattr(_own, "factors", None)
    return factors if factors is None or recompute.allowed() else None


@contextlib.contextmanager
def recorded(factors: Factors) -> Iterator[None]:
    """Let nodes made inside the block, by this thread, keep ``factors``."""
    previous, _own.factors = getattr(_own, "factors", None), factors
    try:
        yield
    finally:
        _own.factors = previous


# Nodes that take each sample by itself, by name without the number that torch gives variants of a formula. Curved ones
# are among them: what they add to a penalty's gradient goes its own way through the forward pass's nodes.
_ELEMENTWISE = {
    "LeakyRelu", "Relu", "Elu", "Softplus", "Silu", "Gelu", "Mish", "Hardtanh", "Tanh", "Sigmoid", "Abs", "Neg", "Pow",
    "Sqrt", "Exp", "Log", "Clamp", "Add", "Sub", "Mul", "Div", "Rsub", "Clone", "ToCopy", "NativeDropout",
}  # fmt: skip
_BY_MAP = {
    "AvgPool2D", "AvgPool3D", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "MkldnnMaxPool2D", "AdaptiveAvgPool2D",
    "AdaptiveMaxPool2D", "ReflectionPad1D", "ReflectionPad2D", "ReplicationPad1D", "ReplicationPad2D",
    "UpsampleNearest2D", "UpsampleBilinear2D", "PixelShuffle", "PixelUnshuffle", "Unsqueeze",
}  # fmt: skip
# Functions of ours that do. Others are known by nothing but a name that anybody may give.
_apart: set[type[Function]] = set()
# They leave a sample's values together and samples in their order, whatever the first dim is counted in.
_RESHAPES = {"View", "UnsafeView", "ReshapeAlias", "Squeeze"}


def keeps_samples_apart(function: type[Function]) -> type[Function]:
    """Declare that a Function takes each sample by itself."""
    _apart.add(function)
    return function


def obstacle(outputs: Tensor, images: Tensor, factors: Factors) -> str | None:
    """Say why :class:`Factors` cannot serve a backward pass from ``outputs`` to ``images``, if so.

    Looks at the graph between them: every parameter must be a weight or a bias of nodes that know the factors, and
    nothing may look at two samples at once.
    """
    count = len(images)
    if count == 0 or outputs.numel() != count or outputs.dim() == 0 or len(outputs) != count:
        return "the critic does not return exactly one logit per sample"
    if outputs.grad_fn is None:
        return "the critic's output does not depend on anything that requires a gradient"
    end = images.grad_fn
    # Nodes of the graph, and who uses what each puts out.
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
    # A backward pass to the images does not come by what they do not reach.
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
    """What stands behind weights and biases, such as a parametrisation, gets the gradients of all samples together."""
    for node in _behind(weights):
        if node is images.grad_fn or getattr(node, "variable", None) is images:
            return "a layer's weight is computed from the images"
        if _knows(node, factors):
            return "a layer's weight is computed by another layer"
    return None


def _behind(nodes: Sequence[Any]) -> Iterator[Any]:
    """All nodes of the graph from some on, those included, each once."""
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
        # Rows of a linear layer over positions are several for each sample.
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
        # One with fewer dims would have its samples along another dim of the result.
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
    """The shape of what a node of the forward pass put out, or of a leaf."""
    shape: Sequence[int] = node.variable.shape if hasattr(node, "variable") else node._input_metadata[0].shape
    return shape


# Nodes with dims of their own: whether the batch's is not among them.
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
    """torch hands saved dims out as unsigned numbers, negative ones among them."""
    return [(d - 2**64 if d >= 2**63 else d) % count for d in dims]


def normalizes_batch(outputs: Tensor, count: int) -> bool:
    """Whether the graph of ``outputs`` has a batch norm in training mode over ``count`` samples."""
    for node in _behind([outputs.grad_fn]):
        if "BatchNorm" in node.name():
            # Instance norm is one over a batch of one.
            training = node.options[0] if hasattr(node, "options") else getattr(node, "_saved_training", True)
            if training and (_shape(node)[0] == count):
                return True
    return False
