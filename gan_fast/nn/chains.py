"""What a module's forward function does with the modules it calls, as torch.fx sees it: what can be one op, and where.

A chain is a convolution, a batch norm behind it, an activation, or two of these; or an instance norm and an activation.
Its values inside go nowhere else, and nothing between its calls writes to a tensor.
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

_WRITING_OPERATORS = {operator.setitem, *(getattr(operator, f"i{name}") for name in ARITHMETIC)}


@dataclass(frozen=True)
class Chain:
    """Modules whose calls become one op, by their names below the module whose forward calls them.

    Args:
        waiting: those whose values wait for what comes next.
        behind: the modules that they wait for.
        activation: what ends it, "" where nothing does.
    """

    waiting: tuple[str, ...]
    behind: tuple[str, ...]
    activation: str


@dataclass(frozen=True)
class Traced:
    """What a forward function was seen to do, whichever mode its module is in.

    Args:
        chains: what can be one op.
        calls: how often each module is called.
        writes_input: whether it may write to one of its arguments.
        returns_input: whether its result may share memory with one.
        any_format: whether all that it calls gives the same values for maps in channels-last.
        convolutions: how many 2-d ones it calls.
    """

    chains: tuple[Chain, ...]
    calls: Counter[str]
    writes_input: bool
    returns_input: bool
    any_format: bool
    convolutions: int


class _Proxy(fx.Proxy):
    """fx's, which sees what is written by ``+=`` and the like, and that a forward function asks for its type."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("torch."):
            self.node.meta["seen"] = True
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
        # In the forward of an autograd.Function, say, or in a checkpointed part: what is one there, must be so in
        # backward.
        node.meta["modes"] = modes(), recompute.allowed()
        proxy = _Proxy(node, self)
        self.proxies.append(weakref.ref(proxy))
        return proxy


class Known(Protocol):
    """What is known of the modules that a forward function calls."""

    def may_join(self, module: nn.Module) -> bool:
        """Whether a layer's call may be part of one op."""

    def traced(self, module: nn.Module) -> Traced | None:
        """What was seen of a module's own forward function."""


def trace(module: nn.Module, forward_of: type[nn.Module], known: Known) -> Traced:
    """Look at what ``forward_of.forward`` does with ``module``, in training and in evaluation mode.

    Raises:
        Exception: whatever the function raises where it is traced.
    """
    train, evaluate = (_read(_graph(module, forward_of, training), module, known) for training in (True, False))
    return Traced(
        tuple(chain for chain in train.chains if chain in evaluate.chains),
        train.calls | evaluate.calls,
        train.writes_input or evaluate.writes_input,
        train.returns_input or evaluate.returns_input,
        train.any_format and evaluate.any_format,
        min(train.convolutions, evaluate.convolutions),
    )


def _graph(module: nn.Module, forward_of: type[nn.Module], training: bool) -> fx.Graph:
    shell = _shell(module, forward_of, {})
    vars(shell)["training"] = training
    tracer = _Tracer()
    graph = tracer.trace(shell)
    for ref in tracer.proxies:
        proxy = ref()
        if proxy is not None:
            # The function has ended: whoever has it still, an attribute or a list, keeps the value in each run.
            proxy.node.meta["seen"] = True
    return graph


def _shell(module: nn.Module, kind: type[nn.Module], shells: dict[nn.Module, nn.Module]) -> nn.Module:
    """A module to be traced in place of another, which sees nothing of what is assigned, appended or added to it."""
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in shells:
        shells[module] = shell = object.__new__(kind)
        shell.__dict__.update({name: _own(value) for name, value in vars(module).items() if name != "_modules"})
        shell.__dict__["_modules"] = {
            name: child if child is None else _shell(child, type(child), shells)
            for name, child in module._modules.items()
        }
    return shells[module]


def _own(value: Any) -> Any:
    if type(value) in (dict, list, set, OrderedDict, defaultdict, deque):
        # Parts that are shared stay shared outside; of most there is nothing to copy.
        copied = value.copy()
        keys = copied if isinstance(copied, dict) else range(0 if isinstance(copied, set) else len(copied))
        for key in keys:
            copied[key] = _own(copied[key])
        return copied
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    return value


def _read(graph: fx.Graph, module: nn.Module, known: Known) -> Traced:
    nodes = list(graph.nodes)
    calls = Counter(str(n.target) for n in nodes if n.op == "call_module")
    called = {n: module.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"}
    order = {n: i for i, n in enumerate(nodes)}
    writing = [i for i, n in enumerate(nodes) if _writes(n, called.get(n), known)]

    def once(node: fx.Node, kinds: tuple[type, ...]) -> bool:
        return (
            node in called
            and isinstance(called[node], kinds)
            and calls[str(node.target)] == 1
            and known.may_join(called[node])
        )

    def next_of(node: fx.Node) -> fx.Node | None:
        """What alone takes a value in, with nothing written between."""
        if len(node.users) != 1:
            return None
        (user,) = node.users
        if "seen" in node.meta or node.meta["modes"] != user.meta.get("modes") or not node.meta["modes"][1]:
            return None
        if not user.args or user.args[0] is not node or list(user.all_input_nodes) != [node]:
            return None
        return None if any(order[node] < i < order[user] for i in writing) else user

    chains: list[Chain] = []
    for node in nodes:
        if once(node, CONVOLUTIONS):
            chain = [node]
            norm = next_of(node)
            if norm is not None and once(norm, BATCH_NORMS) and dims(called[norm]) == dims(called[node]):
                chain.append(norm)
        elif once(node, BATCH_NORMS) or once(node, INSTANCE_NORMS):
            chain = [node]
        else:
            continue
        last = next_of(chain[-1])
        activation = _activation(last, called, known) if last is not None else ""
        if any(str(node.target) in (*c.waiting, *c.behind) for c in chains) or (len(chain) == 1 and not activation):
            continue
        waiting = chain if activation else chain[:-1]
        behind = chain[1:] + ([last] if activation and last in called else [])
        chains.append(Chain(tuple(str(n.target) for n in waiting), tuple(str(n.target) for n in behind), activation))
    writes, returns = _meets_input(nodes, called, known)
    any_format = all("seen" not in n.meta and _any_format(n, called.get(n), known) for n in nodes)
    convolutions = sum(_convolutions(m, known) for m in called.values())
    return Traced(tuple(chains), calls, writes, returns, any_format, convolutions)


def dims(module: nn.Module) -> str:
    """The end of a class's name that tells its dims of space: "2d"."""
    return type(module).__name__[-2:]


_ACTIVATION_BY_FORWARD = {
    nn.ReLU.forward: "relu", rectifiers.ReLU.forward: "relu",
    nn.LeakyReLU.forward: "leaky_relu", rectifiers.LeakyReLU.forward: "leaky_relu",
    nn.Tanh.forward: "tanh", nn.Sigmoid.forward: "sigmoid",
}  # fmt: skip


def activation_of(module: nn.Module) -> str:
    """The activation that a module is; "" where it is none of ours, as a subclass that computes something else."""
    kind = type(module)
    # A subclass may do more in its __call__.
    return _ACTIVATION_BY_FORWARD.get(kind.forward, "") if kind.__call__ is nn.Module.__call__ else ""


def _activation(node: fx.Node, called: dict[fx.Node, nn.Module], known: Known) -> str:
    """What a node does as the end of a chain; "" where it is no such thing."""
    if node in called:
        return activation_of(called[node]) if known.may_join(called[node]) else ""
    if node.op == "call_method" and node.target in METHODS:
        return str(node.target).rstrip("_")
    if node.op == "call_function" and node.target in ACTIVATIONS:
        return str(getattr(node.target, "__name__", "")).rstrip("_")
    return ""


def _writes(node: fx.Node, called: nn.Module | None, known: Known) -> bool:
    """Whether a call may write to a tensor that was there before."""
    if called is not None:
        own = known.traced(called)
        if own is not None:
            # Its own buffers are nobody else's.
            return own.writes_input
        return bool(getattr(called, "inplace", False)) or not type(called).__module__.startswith("torch.nn.modules")
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (
        node.target in _WRITING_OPERATORS
        or (name.endswith("_") and not name.endswith("__"))
        or bool(node.kwargs.get("inplace"))
        or "out" in node.kwargs
        or (node.target in ACTIVATIONS and any(a is True for a in node.args))
    )


# Modules and functions whose results are memory of their own.
_FRESH_MODULES = (
    *CONVOLUTIONS, *BATCH_NORMS, *INSTANCE_NORMS, nn.Linear, nn.Embedding, nn.GroupNorm, nn.PixelShuffle,
    nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd, *ACTIVATION_MODULES, nn.ELU, nn.PReLU, nn.SiLU, nn.GELU, nn.SELU, nn.Softplus,
)  # fmt: skip
_FRESH_FUNCTIONS = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.cat, torch.add, torch.mul,
    torch.sub, torch.stack, *ACTIVATIONS, F.elu, F.softplus, F.avg_pool2d, F.max_pool2d, torch.mean, torch.sum,
}  # fmt: skip
# What gives the same values, for the same random numbers, whatever order its argument has in memory. Not view, which
# fails on channels-last maps, nor dropout, which draws in the order of memory; nor layer norm, which makes a copy.
_ANY_FORMAT_MODULES = (
    *_FRESH_MODULES, nn.Identity, nn.Flatten, nn.Upsample, nn.ZeroPad2d, nn.Dropout2d, nn.Dropout3d, nn.PixelUnshuffle,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip
_ANY_FORMAT_FUNCTIONS = _FRESH_FUNCTIONS | _WRITING_OPERATORS | {
    F.interpolate, F.pad, F.adaptive_avg_pool2d, F.linear, torch.flatten, torch.squeeze, torch.unsqueeze, getattr,
    operator.getitem, operator.floordiv, F.pixel_shuffle, F.dropout2d, torch.exp, torch.sqrt, torch.softmax,
}  # fmt: skip
_ANY_FORMAT_METHODS = {
    *METHODS, "flatten", "reshape", "size", "dim", "mean", "sum", "squeeze", "unsqueeze", "expand", "add", "mul", "exp",
    "add_", "mul_", "numel", "chunk", "split", "repeat",
}  # fmt: skip


def _meets_input(nodes: list[fx.Node], called: dict[fx.Node, nn.Module], known: Known) -> tuple[bool, bool]:
    """Whether a graph may write to its input, and whether what it returns may be part of it."""
    of_input: set[fx.Node] = set()
    writes = returns = False
    for node in nodes:
        if node.op == "placeholder":
            of_input.add(node)
        elif not of_input.isdisjoint(node.all_input_nodes):
            module = called.get(node)
            writes = writes or _writes(node, module, known)
            returns = returns or node.op == "output"
            own = known.traced(module) if module is not None else None
            fresh = (
                not own.returns_input
                if own is not None
                else (
                    isinstance(module, _FRESH_MODULES) and not getattr(module, "inplace", False)
                    if module is not None
                    else node.target in _FRESH_FUNCTIONS and not _writes(node, None, known)
                )
            )
            if not fresh:
                of_input.add(node)
    return writes, returns


def _any_format(node: fx.Node, module: nn.Module | None, known: Known) -> bool:
    if module is not None:
        own = known.traced(module)
        return own.any_format if own is not None else isinstance(module, _ANY_FORMAT_MODULES)
    if node.op == "call_function":
        return node.target in _ANY_FORMAT_FUNCTIONS
    return node.op != "call_method" or node.target in _ANY_FORMAT_METHODS


def _convolutions(module: nn.Module, known: Known) -> int:
    own = known.traced(module)
    return own.convolutions if own is not None else isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
