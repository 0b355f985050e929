"""Trained models for programs without gan_fast: ONNX files and torch.export's programs.

Both hold a model as evaluation runs it, in operators of ATen or of the ONNX standard alone. What does not depend on the
inputs is computed once, and batch norm is folded into the convolution or linear layer in front of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import operator
import os
import warnings
from collections.abc import Iterator
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

logger = logging.getLogger("gan_fast")

_aten = torch.ops.aten

# All have (input, weight, bias) in front; ATen's transposed ones keep the output channels of a group in dim 1.
_TRANSPOSED = (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input)
_FOLDABLE = (
    _aten.linear.default, _aten.convolution.default,
    _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default,
    _aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding,
    *_TRANSPOSED,
)  # fmt: skip
_BATCH_NORM = _aten._native_batch_norm_legit_no_training.default

# Of the largest value, or of one where that is less; wider where a dtype resolves less.
_TOLERANCE = 1e-5
_TOLERANCE_EPS = 16
# What a protobuf, and so an ONNX model in one file, can hold.
_ONNX_BYTES = 2**31 - 1


def to_exported_program(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], *, dynamic_batch: bool = True
) -> torch.export.ExportedProgram:
    """Export a model's evaluation as a program of ATen operators, with batch norm folded.

    Args:
        model: of torch.nn, of gan_fast, or a mixture; left exactly as it is, also in training mode.
        example_inputs: what ``forward`` takes: a tensor, or a tuple of tensors.
        dynamic_batch: the program takes any batch size, in dim 0 of every input that has dims; False: the shapes of
            ``example_inputs`` alone.

    Returns:
        The program, for ``torch.export.save``, ``program.module()`` or a compiler; it shares no memory with the model.

    Raises:
        TypeError: not a module; inputs that are not tensors.
        ValueError: the model does not take the inputs, or cannot be traced (its Python looks at values of tensors), or
            holds for some batch sizes only; the message says which, and the cause is chained.

    Notes:
        Folded where the convolution (1-d to 3-d, plain or transposed, grouped) or linear layer feeds nothing but the
            norm. Weights are folded in float64.
        Weights that are computed (spectral norm, weight norm) are in it as they evaluate.
        Batch norm that has no running statistics, or no convolution in front, stays an operator.
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
) -> None:
    """Write a model's evaluation as one ONNX file of standard operators, with batch norm folded.

    Args:
        model, example_inputs, dynamic_batch: as for :func:`to_exported_program`. The file's inputs have the names that
            ``forward`` gives them, their first dim is called "batch".
        path: the file; its folder must exist. It is complete or, where anything fails, as it was.
        check: run the file's content with onnxruntime before it is written, at the batch size given and at one more,
            and compare with the model: at most 1e-5 of the largest value or of one, 16 roundings in half precision.
            None: where onnxruntime is installed; a line in the log says where not.
        opset_version: of the ONNX standard; None takes torch.onnx's default.

    Raises:
        TypeError, ValueError: as :func:`to_exported_program`; a path that cannot be written to; outputs that are not
            tensors; an operator that ONNX has no counterpart of; parameters of more than 2 GiB.
        ImportError: packages of the extra ``onnx`` are missing.
        RuntimeError: onnxruntime cannot run it, or its results differ; the message has the largest difference. With
            ``files.FileError``, the file could not be written.

    Notes:
        Exported on the CPU, wherever the model is. float64 and half precision are written; whether they run is up to
            the runtime: onnxruntime's CPU kernels have no float64 or bfloat16 convolutions.
    """
    op = "to_onnx"
    destination = _destination(op, path)
    _require(op, "onnx", "onnxscript", *(["onnxruntime"] if check else []))
    inputs = tuple(x.cpu() for x in _inputs(op, example_inputs, dynamic_batch))
    plain = _plain_copy(op, model).cpu()
    size = sum(t.nbytes for t in (*plain.parameters(), *plain.buffers()))
    if size > _ONNX_BYTES:
        raise ValueError(f"{op}: expected model parameters of at most {_ONNX_BYTES} bytes in one file, got {size}")
    for index, output in enumerate(_evaluate(op, plain, inputs)):
        checks.tensor(op, f"model output {index}", output)
    program = _program(op, plain, inputs, dynamic_batch)
    buffers = program.graph_signature.inputs_to_buffers
    moved = [buffers[name] for name in _overwritten(program.graph) if name in buffers]
    if moved:
        raise ValueError(f"{op}: expected model without buffers that evaluation moves, got {', '.join(moved)}")
    content = _onnx(op, program, inputs, dynamic_batch, opset_version)
    if check or (check is None and _installed("onnxruntime")):
        _check(op, content, plain, inputs)
        if dynamic_batch:
            _check(op, content, plain, tuple(torch.cat([x, x[:1]]) if x.dim() else x for x in inputs))
    elif check is None:
        logger.warning("%s: %s is not checked, because onnxruntime is not installed", op, destination)
    write_bytes_safely(destination, content)


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
        raise ValueError(f"{op}: expected path a file, got the folder {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{op}: expected path in a folder that is there, got {path}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{op}: expected path in a folder that can be written to, got {path}")
    return path


def _inputs(op: str, example_inputs: object, dynamic_batch: bool) -> tuple[Tensor, ...]:
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not given:
        raise ValueError(f"{op}: expected example_inputs at least one tensor, got ()")
    inputs = tuple(checks.tensor(op, f"example_inputs[{i}]", x).detach() for i, x in enumerate(given))
    if not dynamic_batch:
        return inputs
    sizes = {x.size(0) for x in inputs if x.dim()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"{op}: expected example_inputs batch size above 0 and the same in all, got shapes "
            f"{', '.join(str(tuple(x.shape)) for x in inputs)}; dynamic_batch=False exports for these alone"
        )
    # What is traced with a batch of one holds for one alone.
    return tuple(torch.cat([x, x]) if x.dim() else x for x in inputs) if sizes == {1} else inputs


def _plain_copy(op: str, model: nn.Module) -> nn.Module:
    """The model in evaluation mode, frozen and of modules that can be traced, in memory of its own."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: expected model type Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"{op}: expected model type Module in Python, got {type(model).__name__}")
    # What torch.compile wraps.
    model = getattr(model, "_orig_mod", model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{op}: expected model with shapes, got a lazy {name}; call the model once")
    with torch.inference_mode(False):
        plain = unfuse(copied(op, model))
        return plain.eval().requires_grad_(False)


def _evaluate(op: str, model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Any]:
    """The outputs, flat; nothing has changed then: inputs, buffers, or the state of random numbers."""
    devices = {x.device for x in inputs if x.is_cuda}
    with _evaluating(inputs), torch.random.fork_rng(devices):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            return pytree.tree_leaves(torch.func.functional_call(model, buffers, tuple(x.clone() for x in inputs)))
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise ValueError(
                f"{op}: expected example_inputs that model takes, got shapes {shapes}: {_reason(error)}"
            ) from error


@contextlib.contextmanager
def _evaluating(inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Plain ATen, without what the caller may be in the midst of and traces would keep: autocast, inference mode."""
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
            if dynamic_batch and _is_traced(model, inputs):
                raise ValueError(
                    f"{op}: expected model of any batch size, got one of some: {_reason(error)}; "
                    "dynamic_batch=False exports it for that of example_inputs"
                ) from error
            raise ValueError(f"{op}: expected model that torch.export traces, got {_reason(error)}") from error
        graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
        ours = {str(n.target) for g in graphs for n in g.nodes if getattr(n.target, "namespace", None) == "gan_fast"}
        if ours:
            raise ValueError(f"{op}: expected model of ATen's operators, got one that calls {', '.join(sorted(ours))}")
        # With an empty table of decompositions operators stay what they are, but none writes over its input any more.
        return _trace(_fold(program.run_decompositions({}).module(check_guards=False)), inputs, dynamic_batch)


def _trace(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> torch.export.ExportedProgram:
    shapes: Any = None
    if dynamic_batch:
        batch, shapes = torch.export.Dim("batch"), torch.export.ShapesCollection()
        # Keyed by identity.
        inputs = tuple(x.view_as(x) for x in inputs)
        for x in inputs:
            if x.dim():
                shapes[x] = {0: batch}
    return torch.export.export(model, inputs, dynamic_shapes=shapes)


def _is_traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    try:
        _trace(model, inputs, dynamic_batch=False)
    except Exception:
        return False
    return True


def _fold(module: fx.GraphModule) -> fx.GraphModule:
    """Compute what does not depend on inputs, and fold batch norm into the layers in front."""
    graph = module.graph
    attributes = {n.target: operator.attrgetter(n.target)(module) for n in graph.nodes if n.op == "get_attr"}
    moved = _overwritten(graph)
    # Nodes that do not depend on inputs, and what they give.
    values: dict[fx.Node, Any] = {}

    def put(value: Tensor, name: str, before: fx.Node) -> fx.Node:
        while any(f"{taken}.".startswith(f"{name}.") for taken in attributes):
            name += "_folded"
        attributes[name] = nn.Parameter(value, requires_grad=False) if value.is_floating_point() else value
        with graph.inserting_before(before):
            return graph.create_node("get_attr", name)

    for node in graph.nodes:
        if node.op == "get_attr":
            if isinstance(attributes[node.target], Tensor) and node.name not in moved:
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
        if not _folds(layer, norm, values):
            continue
        weight, bias = _argument(layer, "weight"), _argument(layer, "bias")
        names = [weight.target, _name_of_bias(weight.target) if bias is None else bias.target]
        for node in (weight, bias):
            if node is not None and len(node.users) == 1:
                del attributes[node.target]
        folded = [put(value, name, layer) for value, name in zip(_folded(layer, norm, values), names)]
        layer.args = (layer.args[0], *folded, *layer.args[3:])
        layer.kwargs = {name: value for name, value in layer.kwargs.items() if name != "bias"}
        # The norm returns what training would save beside its output.
        for user in list(norm.users):
            user.replace_all_uses_with(layer)
            graph.erase_node(user)
        graph.erase_node(norm)
    for node in reversed(graph.nodes):
        if not node.users and not node.is_impure():
            graph.erase_node(node)
    return fx.GraphModule({n.target: attributes[n.target] for n in graph.nodes if n.op == "get_attr"}, graph)


def _overwritten(graph: fx.Graph) -> set[str]:
    """Names of the nodes that a graph without other writes copies new values into, at its end."""
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


def _folds(layer: fx.Node, norm: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if layer.target not in _FOLDABLE or len(layer.users) > 1 or any(user.args[1] != 0 for user in norm.users):
        return False
    needed = [_argument(layer, "weight"), _argument(layer, "bias"), *norm.args[1:5]]
    if any(node is not None and node not in values for node in needed):
        return False
    # A linear layer over more dims has its outputs last, a convolution without a batch has them first: not in dim 1.
    return layer.meta["val"].dim() == values[needed[0]].dim()


def _folded(layer: fx.Node, norm: fx.Node, values: dict[fx.Node, Any]) -> tuple[Tensor, Tensor]:
    """Weight and bias with which the layer alone gives what the norm gave."""
    eps: Any = norm.args[6]
    nodes = _argument(layer, "weight"), _argument(layer, "bias"), *norm.args[1:5]
    tensors: list[Any] = [None if node is None else values[node].double() for node in nodes]
    weight, bias, bn_weight, bn_bias, mean, var = tensors
    scale = (var + eps).rsqrt() if bn_weight is None else bn_weight * (var + eps).rsqrt()
    shift = -mean * scale if bias is None else (bias - mean) * scale
    shift = shift if bn_bias is None else shift + bn_bias
    if layer.target in _TRANSPOSED or (layer.target is _aten.convolution.default and _argument(layer, "transposed")):
        # (C_in, C_out / groups, *kernel): rows of C_in / groups belong to a group of outputs each.
        scales = scale.view(_argument(layer, "groups"), 1, -1, *(1 for _ in weight.shape[2:]))
        folded = (weight.unflatten(0, (scales.size(0), -1)) * scales).flatten(0, 1)
    else:
        folded = weight * scale.view(-1, *(1 for _ in weight.shape[1:]))
    dtype = values[nodes[0]].dtype
    return folded.to(dtype), shift.to(dtype)


def _onnx(
    op: str, program: torch.export.ExportedProgram, inputs: tuple[Tensor, ...], dynamic_batch: bool, opset: int | None
) -> bytes:
    with _quiet():
        import onnx
        import onnxscript.optimizer
        import torch.onnx

        shapes = tuple({0: "batch"} if x.dim() else None for x in inputs) if dynamic_batch else None
        try:
            converted: Any = torch.onnx.export(
                program, inputs, dynamo=True, verbose=False, optimize=False, dynamic_shapes=shapes,
                opset_version=opset,
            )  # fmt: skip
            # What else `optimize` does takes 1e-8 for zero and 1.00001 for one, and an eps is gone.
            onnxscript.optimizer.fold_constants(converted.model)
            onnxscript.optimizer.remove_unused_nodes(converted.model)
            model = converted.model_proto
            onnx.checker.check_model(model)
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ValueError(f"{op}: expected model of operators that ONNX has, got {_reason(cause)}") from error
    graph = model.graph
    # Where each value comes from in the source: paths on this machine, which are nobody else's business.
    for described in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del described.metadata_props[:]
    content: bytes = model.SerializeToString()
    return content


def _check(op: str, content: bytes, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise where onnxruntime and the model differ."""
    import onnxruntime

    expected = _evaluate(op, model, inputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        results = session.run(None, {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs)})
    except Exception as error:
        raise RuntimeError(
            f"{op}: expected model that onnxruntime runs, got {_reason(error)}; check=False writes it all the same"
        ) from error
    for index, (result, want) in enumerate(zip(map(torch.from_numpy, results), expected)):
        if result.shape != want.shape:
            raise RuntimeError(
                f"{op}: expected onnxruntime's output {index} shape {tuple(want.shape)}, got {tuple(result.shape)}"
            )
        if not want.numel():
            continue
        eps = torch.finfo(want.dtype).eps if want.is_floating_point() else 0.0
        result, want = result.double(), want.double()
        allowed = max(_TOLERANCE, _TOLERANCE_EPS * eps) * max(1.0, want.abs().max().item())
        difference = (result - want).abs().max().item()
        if not difference <= allowed:
            raise RuntimeError(
                f"{op}: expected onnxruntime's output {index} within {allowed:.3g} of model's, "
                f"got a largest difference of {difference:.3g}; check=False writes it all the same "
                "(a model that draws random numbers never agrees)"
            )


def _reason(error: BaseException) -> str:
    """The line of an error that says most: torch's own have advice around it, in a list what it is about."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()] or [""]
    listed = (line.removeprefix("- ").partition(". ")[0] for line in lines if line.startswith("- "))
    told = next(listed, lines[0])
    return f"{type(error).__name__}: {told}"


# What torch's exporters log and warn about: packages that are not installed, deprecations of their own.
_NOISY = ("torch", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters warn of, log and print, but for what TORCH_LOGS asks for."""
    loggers = [value for value in logging.root.manager.loggerDict.values() if isinstance(value, logging.Logger)]
    handlers = {handler for log in (logging.root, *loggers) for handler in log.handlers}
    if logging.lastResort is not None:
        handlers.add(logging.lastResort)

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] not in _NOISY

    quieted = [] if "TORCH_LOGS" in os.environ else list(handlers)
    for handler in quieted:
        handler.addFilter(is_of_others)
    try:
        # To stderr goes the graph of a trace that fails.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in quieted:
            handler.removeFilter(is_of_others)
