"""Trace a module's forward function with torch.fx and find the layers that can run as one op.

A fusion group is a convolution, batch norm and an activation, or two of these in that order, or an instance norm and an
activation. Values inside a group have one user, and nothing writes to a tensor between its calls.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gan_fast.nn import rectifiers
from gan_fast.nn.deferred import ACTIVATIONS, ARITHMETIC, METHODS, modes
from gan_fast.ops import recompute

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
RECTIFIERS = (nn.ReLU, nn.LeakyReLU)
ACTIVATION_MODULES = (*RECTIFIERS, nn.Tanh, nn.Sigmoid)

_IN_PLACE_OPERATORS = {operator.setitem, *(getattr(operator, f"i{name}") for name in ARITHMETIC)}


@dataclass(frozen=True)
class FusionGroup:
    """Layers that can run as one op, by their names below the module whose forward calls them.

    Args:
        deferred: modules whose outputs are deferred.
        consumers: modules that take in a deferred output.
        activation: the activation at the end, or "".
    """

    deferred: tuple[str, ...]
    consumers: tuple[str, ...]
    activation: str


@dataclass(frozen=True)
class ForwardTrace:
    """What a forward function does, over training and evaluation mode.

    Args:
        groups: layers that can run as one op in both modes.
        calls: how often each module is called.
        writes_input: whether it may write to an argument.
        returns_input: whether its result may share memory with an argument.
        any_format: whether everything it calls gives the same values for channels-last images.
        convolutions: the number of 2-d convolutions that it calls.
    """

    groups: tuple[FusionGroup, ...]
    calls: Counter[str]
    writes_input: bool
    returns_input: bool
    any_format: bool
    convolutions: int


class _Proxy(fx.Proxy):
    """torch.fx's proxy that also records in-place operators, and marks values whose type the forward inspects."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("torch."):
            self.node.meta["escapes"] = True
        return type(self)


def _in_place(name: str) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})


for _name in (f"i{kind}" for kind in ARITHMETIC):
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.proxies: list[weakref.ref[fx.Proxy]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        # Layers form a group only where the modes agree (a custom autograd.Function runs without gradients) and outside
        # of checkpointing, whose second forward in backward must run the same ops.
        node.meta["modes"] = modes(), recompute.allowed()
        proxy = _Proxy(node, self)
        self.proxies.append(weakref.ref(proxy))
        return proxy


class Layers(Protocol):
    """What the caller knows of the modules that a forward function calls."""

    def may_fuse(self, module: nn.Module) -> bool:
        """Whether a layer may be part of a fusion group."""

    def trace_of(self, module: nn.Module) -> ForwardTrace | None:
        """The trace of a module's own forward function."""


def trace(module: nn.Module, forward_class: type[nn.Module], layers: Layers) -> ForwardTrace:
    """Trace ``forward_class.forward`` on ``module``, in training and in evaluation mode.

    Raises:
        Exception: whatever the forward function raises under torch.fx.
    """
    train, evaluate = (_analyze(_graph(module, forward_class, training), module, layers) for training in (True, False))
    return ForwardTrace(
        tuple(group for group in train.groups if group in evaluate.groups),
        train.calls | evaluate.calls,
        train.writes_input or evaluate.writes_input,
        train.returns_input or evaluate.returns_input,
        train.any_format and evaluate.any_format,
        min(train.convolutions, evaluate.convolutions),
    )


def _graph(module: nn.Module, forward_class: type[nn.Module], training: bool) -> fx.Graph:
    isolated = _isolated_copy(module, forward_class, {})
    vars(isolated)["training"] = training
    tracer = _Tracer()
    graph = tracer.trace(isolated)
    for ref in tracer.proxies:
        proxy = ref()
        if proxy is not None:
            # The value outlives the traced forward, so an attribute or a list will hold it in each run.
            proxy.node.meta["escapes"] = True
    return graph


def _isolated_copy(module: nn.Module, kind: type[nn.Module], copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """A shallow copy to trace, so that attributes, lists and buffers that the forward changes stay as they are."""
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in copies:
        copies[module] = copy = object.__new__(kind)
        copy.__dict__.update({name: _copied(value) for name, value in vars(module).items() if name != "_modules"})
        copy.__dict__["_modules"] = {
            name: child if child is None else _isolated_copy(child, type(child), copies)
            for name, child in module._modules.items()
        }
    return copies[module]


def _copied(value: Any) -> Any:
    """Copy containers, with what they contain, and buffers; everything else stays shared."""
    if type(value) in (dict, list, set, OrderedDict, defaultdict, deque):
        copied = value.copy()
        keys = copied if isinstance(copied, dict) else range(0 if isinstance(copied, set) else len(copied))
        for key in keys:
            copied[key] = _copied(copied[key])
        return copied
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    return value


def _analyze(graph: fx.Graph, module: nn.Module, layers: Layers) -> ForwardTrace:
    nodes = list(graph.nodes)
    calls = Counter(str(n.target) for n in nodes if n.op == "call_module")
    called = {n: module.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"}
    order = {n: i for i, n in enumerate(nodes)}
    writing = [i for i, n in enumerate(nodes) if _writes(n, called.get(n), layers)]

    def once(node: fx.Node, kinds: tuple[type, ...]) -> bool:
        return (
            node in called
            and isinstance(called[node], kinds)
            and calls[str(node.target)] == 1
            and layers.may_fuse(called[node])
        )

    def next_of(node: fx.Node) -> fx.Node | None:
        """The node that uses a value, if it is the only one, has no other input, and no write comes between them."""
        if len(node.users) != 1:
            return None
        (user,) = node.users
        if "escapes" in node.meta or node.meta["modes"] != user.meta.get("modes") or not node.meta["modes"][1]:
            return None
        if not user.args or user.args[0] is not node or list(user.all_input_nodes) != [node]:
            return None
        return None if any(order[node] < i < order[user] for i in writing) else user

    groups: list[FusionGroup] = []
    for node in nodes:
        if once(node, CONVOLUTIONS):
            members = [node]
            norm = next_of(node)
            if norm is not None and once(norm, BATCH_NORMS) and dims(called[norm]) == dims(called[node]):
                members.append(norm)
        elif once(node, BATCH_NORMS) or once(node, INSTANCE_NORMS):
            members = [node]
        else:
            continue
        last = next_of(members[-1])
        activation = _activation(last, called, layers) if last is not None else ""
        in_group = any(str(node.target) in (*group.deferred, *group.consumers) for group in groups)
        if in_group or (len(members) == 1 and not activation):
            continue
        deferred = members if activation else members[:-1]
        consumers = members[1:] + ([last] if activation and last in called else [])
        groups.append(
            FusionGroup(tuple(str(n.target) for n in deferred), tuple(str(n.target) for n in consumers), activation)
        )
    writes, returns = _input_use(nodes, called, layers)
    any_format = all("escapes" not in n.meta and _any_format(n, called.get(n), layers) for n in nodes)
    convolutions = sum(_convolutions(m, layers) for m in called.values())
    return ForwardTrace(tuple(groups), calls, writes, returns, any_format, convolutions)


def dims(module: nn.Module) -> str:
    """The spatial dimensions in a class's name, such as "2d"."""
    return type(module).__name__[-2:]


_ACTIVATION_BY_FORWARD = {
    nn.ReLU.forward: "relu", rectifiers.ReLU.forward: "relu",
    nn.LeakyReLU.forward: "leaky_relu", rectifiers.LeakyReLU.forward: "leaky_relu",
    nn.Tanh.forward: "tanh", nn.Sigmoid.forward: "sigmoid",
}  # fmt: skip


def activation_of(module: nn.Module) -> str:
    """The name of an activation module; "" for all others, also for subclasses that override forward or __call__."""
    kind = type(module)
    return _ACTIVATION_BY_FORWARD.get(kind.forward, "") if kind.__call__ is nn.Module.__call__ else ""


def _activation(node: fx.Node, called: dict[fx.Node, nn.Module], layers: Layers) -> str:
    """The activation that a node applies, or ""."""
    if node in called:
        return activation_of(called[node]) if layers.may_fuse(called[node]) else ""
    if node.op == "call_method" and node.target in METHODS:
        return str(node.target).rstrip("_")
    if node.op == "call_function" and node.target in ACTIVATIONS:
        return str(getattr(node.target, "__name__", "")).rstrip("_")
    return ""


def _writes(node: fx.Node, called: nn.Module | None, layers: Layers) -> bool:
    """Whether a call may write to a tensor that existed before it."""
    if called is not None:
        inner = layers.trace_of(called)
        if inner is not None:
            # Writes to its own buffers do not count.
            return inner.writes_input
        return bool(getattr(called, "inplace", False)) or not type(called).__module__.startswith("torch.nn.modules")
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (
        node.target in _IN_PLACE_OPERATORS
        or (name.endswith("_") and not name.endswith("__"))
        or bool(node.kwargs.get("inplace"))
        or "out" in node.kwargs
        or (node.target in ACTIVATIONS and any(a is True for a in node.args))
    )


# Modules and functions whose results never share memory with their arguments.
_FRESH_MODULES = (
    *CONVOLUTIONS, *BATCH_NORMS, *INSTANCE_NORMS, nn.Linear, nn.Embedding, nn.GroupNorm, nn.PixelShuffle,
    nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd, *ACTIVATION_MODULES, nn.ELU, nn.PReLU, nn.SiLU, nn.GELU, nn.SELU, nn.Softplus,
)  # fmt: skip
_FRESH_FUNCTIONS = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.cat, torch.add, torch.mul,
    torch.sub, torch.stack, *ACTIVATIONS, F.elu, F.softplus, F.avg_pool2d, F.max_pool2d, torch.mean, torch.sum,
}  # fmt: skip
# Calls that give the same values, for the same random numbers, in any memory format. Left out: view, which fails on
# channels-last images; dropout, which draws in memory order; layer norm, which copies.
_ANY_FORMAT_MODULES = (
    *_FRESH_MODULES, nn.Identity, nn.Flatten, nn.Upsample, nn.ZeroPad2d, nn.Dropout2d, nn.Dropout3d, nn.PixelUnshuffle,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip
_ANY_FORMAT_FUNCTIONS = _FRESH_FUNCTIONS | _IN_PLACE_OPERATORS | {
    F.interpolate, F.pad, F.adaptive_avg_pool2d, F.linear, torch.flatten, torch.squeeze, torch.unsqueeze, getattr,
    operator.getitem, operator.floordiv, F.pixel_shuffle, F.dropout2d, torch.exp, torch.sqrt, torch.softmax,
}  # fmt: skip
_ANY_FORMAT_METHODS = {
    *METHODS, "flatten", "reshape", "size", "dim", "mean", "sum", "squeeze", "unsqueeze", "expand", "add", "mul", "exp",
    "add_", "mul_", "numel", "chunk", "split", "repeat",
}  # fmt: skip


def _input_use(nodes: list[fx.Node], called: dict[fx.Node, nn.Module], layers: Layers) -> tuple[bool, bool]:
    """Whether a graph may write to its input, and whether its result may share memory with it."""
    of_input: set[fx.Node] = set()
    writes = returns = False
    for node in nodes:
        if node.op == "placeholder":
            of_input.add(node)
        elif not of_input.isdisjoint(node.all_input_nodes):
            module = called.get(node)
            writes = writes or _writes(node, module, layers)
            returns = returns or node.op == "output"
            inner = layers.trace_of(module) if module is not None else None
            fresh = (
                not inner.returns_input
                if inner is not None
                else (
                    isinstance(module, _FRESH_MODULES) and not getattr(module, "inplace", False)
                    if module is not None
                    else node.target in _FRESH_FUNCTIONS and not _writes(node, None, layers)
                )
            )
            if not fresh:
                of_input.add(node)
    return writes, returns


def _any_format(node: fx.Node, module: nn.Module | None, layers: Layers) -> bool:
    if module is not None:
        inner = layers.trace_of(module)
        return inner.any_format if inner is not None else isinstance(module, _ANY_FORMAT_MODULES)
    if node.op == "call_function":
        return node.target in _ANY_FORMAT_FUNCTIONS
    return node.op != "call_method" or node.target in _ANY_FORMAT_METHODS


def _convolutions(module: nn.Module, layers: Layers) -> int:
    inner = layers.trace_of(module)
    return inner.convolutions if inner is not None else isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
