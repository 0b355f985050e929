"""Export trained models as ONNX files or torch.export programs, which run without gan_fast.

Both contain the model in evaluation mode, in ATen's or ONNX's standard operators only. Everything that does not depend
on the inputs is computed once, and batch norm is folded into the convolution or linear layer before it.

>>> import torch
>>> from gan_fast.export import to_exported_program
>>> from gan_fast.models import DCGANGenerator
>>> program = to_exported_program(DCGANGenerator(latent_dim=8, image_size=16, width=4), torch.randn(1, 8))
>>> program.module()(torch.randn(5, 8)).shape
torch.Size([5, 3, 16, 16])
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import operator
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from gan_fast import backends
from gan_fast.files import write_bytes_safely
from gan_fast.nn.fuse import copied, unfuse
from gan_fast.ops import checks
from gan_fast.ops.batch_norm_folding import fold_batch_norm

__all__ = ["to_exported_program", "to_onnx"]

logger = logging.getLogger("gan_fast")

_aten = torch.ops.aten

# All begin with (input, weight, bias). Transposed weights have a group's output channels in dim 1.
_TRANSPOSED = (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input)
_FOLDABLE = (
    _aten.linear.default, _aten.convolution.default,
    _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default,
    _aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding,
    *_TRANSPOSED,
)  # fmt: skip
_BATCH_NORM = _aten._native_batch_norm_legit_no_training.default

# The allowed difference from the model, relative to max(1, largest output): 1e-5, or 16 eps of the dtype if larger.
_TOLERANCE = 1e-5
_TOLERANCE_EPS = 16
# The size limit of a protobuf message, and so of an ONNX model in one file.
_MAX_ONNX_BYTES = 2**31 - 1


def to_exported_program(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], *, dynamic_batch: bool = True
) -> torch.export.ExportedProgram:
    """Export a model in evaluation mode as a program of ATen operators, with batch norm folded.

    Args:
        model: modules of torch.nn, gan_fast or both. It is left unchanged, also in training mode.
        example_inputs: the inputs of ``forward``, a tensor or a tuple of tensors.
        dynamic_batch: True: the program accepts any batch size in dim 0 of every input that has dimensions. False: it
            accepts the shapes of ``example_inputs`` only.

    Returns:
        The program, for ``torch.export.save``, ``program.module()`` or a compiler. It shares no memory with the model.

    Raises:
        TypeError: ``model`` is not a module, or an input is not a tensor.
        ValueError: the model rejects the inputs, cannot be traced (its Python code depends on tensor values), or works
            for some batch sizes only.

    Notes:
        A norm is folded if the convolution (1-d to 3-d, plain, transposed or grouped) or linear layer before it feeds
        nothing else. Weights are folded in float64. A norm without running statistics stays an operator.
        Parametrized weights (spectral norm, weight norm) are stored as evaluation computes them.
    """
    op = "to_exported_program"
    inputs = _inputs(op, example_inputs, dynamic_batch)
    plain = _plain_copy(op, model)
    _evaluate(op, plain, inputs)
    return _program(op, plain, inputs, dynamic_batch)


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    dynamic_batch: bool = True,
    check: bool | None = None,
    opset_version: int | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """Write a model in evaluation mode as one ONNX file of standard operators, with batch norm folded.

    The inputs in the file have the names of ``forward``'s parameters, and their first dimension is called "batch".

    Args:
        model, example_inputs, dynamic_batch: see :func:`to_exported_program`.
        path: the file to write, in an existing folder. An error leaves an existing file unchanged.
        check: run the exported model with onnxruntime before it is written, at the given batch size and one more, and
            compare with ``model``. The largest allowed difference is 1e-5 (in half precision 16 eps) times
            max(1, largest output). None: check if onnxruntime is installed, and log a warning if not.
        opset_version: of the ONNX standard; None is torch.onnx's default.
        output_names: one name per output tensor, which no input or parameter has. None: "output", or "output_0",
            "output_1", ... for several.

    Raises:
        TypeError, ValueError: see :func:`to_exported_program`. Also: a path that cannot be written, an output that is
            not a tensor, an operator that ONNX does not have, parameters of more than 2 GiB, a wrong number of names.
        ImportError: the packages of the extra ``onnx`` are not installed.
        RuntimeError: onnxruntime cannot run the model, or its results differ.
        FileError: the file could not be written.

    Notes:
        The export runs on the CPU, wherever the model is. float64 and half precision models are written, but
        onnxruntime's CPU kernels have no float64 or bfloat16 convolutions.
    """
    op = "to_onnx"
    destination = _destination(op, path)
    _require(op, "onnx", "onnxscript", *(["onnxruntime"] if check else []))
    inputs = tuple(x.cpu() for x in _inputs(op, example_inputs, dynamic_batch))
    plain = _plain_copy(op, model).cpu()
    size = sum(t.nbytes for t in (*plain.parameters(), *plain.buffers()))
    if size > _MAX_ONNX_BYTES:
        raise ValueError(f"{op}: expected model parameters of at most {_MAX_ONNX_BYTES} bytes in one file, got {size}")
    outputs = _evaluate(op, plain, inputs)
    for index, output in enumerate(outputs):
        checks.tensor(op, f"model output {index}", output)
    program = _program(op, plain, inputs, dynamic_batch)
    taken = {*program.graph_signature.user_inputs, *program.state_dict, *program.constants}
    names = _output_names(op, output_names, len(outputs), taken)
    buffers = program.graph_signature.inputs_to_buffers
    changed = [buffers[name] for name in _overwritten(program.graph) if name in buffers]
    if changed:
        raise ValueError(
            f"{op}: expected model whose forward changes no buffers in evaluation mode, got {', '.join(changed)}"
        )
    content = _onnx(op, program, inputs, dynamic_batch, opset_version, names)
    if check or (check is None and _installed("onnxruntime")):
        _check(op, content, plain, inputs)
        if dynamic_batch:
            _check(op, content, plain, tuple(torch.cat([x, x[:1]]) if x.dim() else x for x in inputs))
    elif check is None:
        logger.warning("%s: %s was not checked, because onnxruntime is not installed", op, destination)
    write_bytes_safely(destination, content)


def _output_names(op: str, names: Sequence[str] | None, count: int, taken: set[Any]) -> list[str]:
    if names is None:
        names = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
        while not taken.isdisjoint(names):
            names = [f"{name}_" for name in names]
    if isinstance(names, str) or len(names) != count or len(set(names)) != count:
        raise ValueError(f"{op}: expected output_names {count} different names, got {names!r}")
    if not taken.isdisjoint(names):
        used = ", ".join(sorted(taken.intersection(names)))
        raise ValueError(f"{op}: expected output_names that no input or parameter has, got {used}")
    return list(names)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _require(op: str, *packages: str) -> None:
    missing = [package for package in packages if not _installed(package)]
    if missing:
        raise ImportError(
            f"{op}: expected {' and '.join(packages)} to be installed, got no {', '.join(missing)}; "
            "run: pip install 'gan_fast[onnx]'"
        )


def _destination(op: str, path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{op}: expected path type str or Path, got {type(path).__name__}")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{op}: expected path of a file, got the folder {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{op}: expected path in an existing folder, got {path}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{op}: expected path in a writable folder, got {path}")
    return path


def _inputs(op: str, example_inputs: object, dynamic_batch: bool) -> tuple[Tensor, ...]:
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not given:
        raise ValueError(f"{op}: expected example_inputs to contain at least one tensor, got ()")
    inputs = tuple(checks.tensor(op, f"example_inputs[{i}]", x).detach() for i, x in enumerate(given))
    if not dynamic_batch:
        return inputs
    sizes = {x.size(0) for x in inputs if x.dim()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"{op}: expected example_inputs with the same batch size, at least 1, got shapes "
            f"{', '.join(str(tuple(x.shape)) for x in inputs)}; dynamic_batch=False exports for these shapes only"
        )
    # torch.export specializes on a batch size of 1.
    return tuple(torch.cat([x, x]) if x.dim() else x for x in inputs) if sizes == {1} else inputs


def _plain_copy(op: str, model: nn.Module) -> nn.Module:
    """An unfused copy of the model in evaluation mode, without gradients, for torch.export to trace."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: expected model type Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{op}: expected model that is not scripted, got {type(model).__name__}; pass the model that was scripted"
        )
    # torch.compile wraps the model.
    model = getattr(model, "_orig_mod", model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{op}: expected model without lazy parameters, got {name}; run the model once first")
    with torch.inference_mode(False):
        plain = unfuse(copied(op, model))
        return plain.eval().requires_grad_(False)


def _evaluate(op: str, model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any]:
    """Run the model and return its outputs, flattened; inputs, buffers and random number generators stay unchanged."""
    devices = {x.device for x in inputs if x.is_cuda}
    with _evaluating(inputs), torch.random.fork_rng(devices):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            return pytree.tree_leaves(torch.func.functional_call(model, buffers, tuple(x.clone() for x in inputs)))
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise ValueError(
                f"{op}: expected example_inputs that model accepts, got shapes {shapes}: {_reason(error)}"
            ) from error


@contextlib.contextmanager
def _evaluating(inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Run on plain ATen, outside the caller's autocast and inference modes, which a trace would record."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(backends.use_backend_in_thread("reference"))
        for device in {x.device.type for x in inputs}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _program(
    op: str, model: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool
) -> torch.export.ExportedProgram:
    with _quiet(), _evaluating(inputs):
        try:
            program = _trace(model, inputs, dynamic_batch)
        except Exception as error:
            if dynamic_batch and _can_trace(model, inputs):
                raise ValueError(
                    f"{op}: expected model that works for any batch size, got {_reason(error)}; "
                    "dynamic_batch=False exports it for the batch size of example_inputs"
                ) from error
            raise ValueError(f"{op}: expected model that torch.export can trace, got {_reason(error)}") from error
        graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
        fused = {str(n.target) for g in graphs for n in g.nodes if getattr(n.target, "namespace", None) == "gan_fast"}
        if fused:
            raise ValueError(f"{op}: expected model of ATen operators, got one that calls {', '.join(sorted(fused))}")
        # An empty decomposition table keeps the operators and only replaces in-place ones.
        return _trace(_fold(program.run_decompositions({}).module(check_guards=False)), inputs, dynamic_batch)


def _trace(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> torch.export.ExportedProgram:
    shapes: Any = None
    if dynamic_batch:
        batch, shapes = torch.export.Dim("batch"), torch.export.ShapesCollection()
        # ShapesCollection is keyed by identity, and one tensor may be passed twice.
        inputs = tuple(x.view_as(x) for x in inputs)
        for x in inputs:
            if x.dim():
                shapes[x] = {0: batch}
    return torch.export.export(model, inputs, dynamic_shapes=shapes)


def _can_trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    try:
        _trace(model, inputs, dynamic_batch=False)
    except Exception:
        return False
    return True


def _fold(module: fx.GraphModule) -> fx.GraphModule:
    """Compute everything that does not depend on the inputs, and fold batch norm into the layers before it."""
    graph = module.graph
    attributes = {n.target: operator.attrgetter(n.target)(module) for n in graph.nodes if n.op == "get_attr"}
    overwritten = _overwritten(graph)
    # The nodes that do not depend on inputs, and their values.
    values: dict[fx.Node, Any] = {}

    def put(value: Tensor, name: str, before: fx.Node) -> fx.Node:
        while any(f"{taken}.".startswith(f"{name}.") for taken in attributes):
            name += "_folded"
        attributes[name] = nn.Parameter(value, requires_grad=False) if value.is_floating_point() else value
        with graph.inserting_before(before):
            return graph.create_node("get_attr", name)

    for node in graph.nodes:
        if node.op == "get_attr":
            if isinstance(attributes[node.target], Tensor) and node.name not in overwritten:
                values[node] = attributes[node.target]
        elif _is_computable(node, values):
            values[node] = node.target(*map_arg(node.args, values.get), **map_arg(node.kwargs, values.get))
    for node, value in list(values.items()):
        if node.op != "get_attr" and isinstance(value, Tensor) and any(user not in values for user in node.users):
            computed = put(value, node.name, node)
            node.replace_all_uses_with(computed, delete_user_cb=lambda user: user not in values)
            values[computed] = value

    for norm in graph.find_nodes(op="call_function", target=_BATCH_NORM):
        layer = norm.args[0]
        if not _can_fold(layer, norm, values):
            continue
        weight, bias = _argument(layer, "weight"), _argument(layer, "bias")
        names = [weight.target, _name_of_bias(weight.target) if bias is None else bias.target]
        for node in (weight, bias):
            if node is not None and len(node.users) == 1:
                del attributes[node.target]
        folded = [put(value, name, layer) for value, name in zip(_folded(layer, norm, values), names)]
        layer.args = (layer.args[0], *folded, *layer.args[3:])
        layer.kwargs = {name: value for name, value in layer.kwargs.items() if name != "bias"}
        # The users are getitem nodes: the norm also returns the statistics that training would save.
        for user in list(norm.users):
            user.replace_all_uses_with(layer)
            graph.erase_node(user)
        graph.erase_node(norm)
    for node in reversed(graph.nodes):
        if not node.users and not node.is_impure():
            graph.erase_node(node)
    return fx.GraphModule({n.target: attributes[n.target] for n in graph.nodes if n.op == "get_attr"}, graph)


def _overwritten(graph: fx.Graph) -> set[str]:
    """The names of the nodes (buffers) that the graph updates with copy_ at its end."""
    return {node.args[0].name for node in graph.find_nodes(op="call_function", target=_aten.copy_.default)}


def _is_computable(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if node.op != "call_function" or not node.all_input_nodes or any(n not in values for n in node.all_input_nodes):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    return torch.Tag.nondeterministic_seeded not in node.target.tags and not node.target._schema.is_mutable


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of an operator, or its default."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    index = next(i for i, argument in enumerate(arguments) if argument.name == name)
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, arguments[index].default_value)


def _name_of_bias(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias" if weight.endswith("weight") else f"{weight}_bias"


def _can_fold(layer: fx.Node, norm: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if layer.target not in _FOLDABLE or len(layer.users) > 1 or any(user.args[1] != 0 for user in norm.users):
        return False
    needed = [_argument(layer, "weight"), _argument(layer, "bias"), *norm.args[1:5]]
    if any(node is not None and node not in values for node in needed):
        return False
    # The norm normalizes dim 1. A linear layer of more dims has its outputs last, an unbatched convolution first.
    return layer.meta["val"].dim() == values[needed[0]].dim()


def _folded(layer: fx.Node, norm: fx.Node, values: dict[fx.Node, Any]) -> tuple[Tensor, Tensor]:
    """The weight and bias of the layer that replaces both, computed in float64."""
    eps: Any = norm.args[6]
    nodes = _argument(layer, "weight"), _argument(layer, "bias"), *norm.args[1:5]
    tensors: list[Any] = [None if node is None else values[node].double() for node in nodes]
    weight, bias, bn_weight, bn_bias, mean, var = tensors
    transposed = layer.target in _TRANSPOSED or (
        layer.target is _aten.convolution.default and _argument(layer, "transposed")
    )
    groups = _argument(layer, "groups") if transposed else 1
    folded, shift = fold_batch_norm(weight, bias, mean, var, bn_weight, bn_bias, eps, transposed, groups)
    dtype = values[nodes[0]].dtype
    return folded.to(dtype), shift.to(dtype)


def _onnx(
    op: str, program: torch.export.ExportedProgram, inputs: tuple[Tensor, ...], dynamic_batch: bool,
    opset: int | None, output_names: list[str],
) -> bytes:  # fmt: skip
    with _quiet():
        import onnx
        import onnxscript.optimizer
        import torch.onnx

        shapes = tuple({0: "batch"} if x.dim() else None for x in inputs) if dynamic_batch else None
        try:
            converted: Any = torch.onnx.export(
                program, inputs, dynamo=True, verbose=False, optimize=False, dynamic_shapes=shapes,
                opset_version=opset, output_names=output_names,
            )  # fmt: skip
            # optimize=True would round 1e-8 to zero and 1.00001 to one, and so remove an eps.
            onnxscript.optimizer.fold_constants(converted.model)
            onnxscript.optimizer.remove_unused_nodes(converted.model)
            model = converted.model_proto
            onnx.checker.check_model(model)
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ValueError(f"{op}: expected model of operators that ONNX supports, got {_reason(cause)}") from error
    graph = model.graph
    # The metadata hold stack traces with this machine's paths.
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    content: bytes = model.SerializeToString()
    return content


def _check(op: str, content: bytes, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise if onnxruntime cannot run the exported model or its outputs differ from the model's."""
    import onnxruntime

    expected = _evaluate(op, model, inputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        results = session.run(None, {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs)})
    except Exception as error:
        raise RuntimeError(
            f"{op}: expected model that onnxruntime can run, got {_reason(error)}; check=False writes it unchecked"
        ) from error
    for index, (result, want) in enumerate(zip(map(torch.from_numpy, results), expected)):
        if result.shape != want.shape:
            raise RuntimeError(
                f"{op}: expected onnxruntime's output {index} of shape {tuple(want.shape)}, got {tuple(result.shape)}"
            )
        if not want.numel():
            continue
        eps = torch.finfo(want.dtype).eps if want.is_floating_point() else 0.0
        result, want = result.double(), want.double()
        allowed = max(_TOLERANCE, _TOLERANCE_EPS * eps) * max(1.0, want.abs().max().item())
        difference = (result - want).abs().max().item()
        if not difference <= allowed:
            raise RuntimeError(
                f"{op}: expected onnxruntime's output {index} to be within {allowed:.3g} of the model's, "
                f"got a difference of {difference:.3g}; check=False writes it unchecked "
                "(the outputs of a model that draws random numbers always differ)"
            )


def _reason(error: BaseException) -> str:
    """The most informative line of an error: the first list item of torch.export's long messages, or the first line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()] or [""]
    listed = (line.removeprefix("- ").partition(". ")[0] for line in lines if line.startswith("- "))
    return f"{type(error).__name__}: {next(listed, lines[0])}"


# Loggers of torch's exporters, which report missing optional packages and their own deprecations.
_NOISY = ("torch", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings, log lines and prints of torch's exporters; TORCH_LOGS keeps the log lines."""
    loggers = [value for value in logging.root.manager.loggerDict.values() if isinstance(value, logging.Logger)]
    handlers = {handler for log in (logging.root, *loggers) for handler in log.handlers}
    if logging.lastResort is not None:
        handlers.add(logging.lastResort)

    def is_not_noisy(record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] not in _NOISY

    quieted = [] if "TORCH_LOGS" in os.environ else list(handlers)
    for handler in quieted:
        handler.addFilter(is_not_noisy)
    try:
        # torch.export prints the graph of a failed trace to stderr.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in quieted:
            handler.removeFilter(is_not_noisy)
