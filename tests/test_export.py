"""Exported models give the outputs of evaluation, without batch norm or gan_fast, and leave the model unchanged."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gan_fast
from gan_fast import export
from gan_fast.files import FileError
from gan_fast.models import DCGANDiscriminator, DCGANGenerator


def with_random_norms(model):
    """Give norms random statistics, weights and biases, as after training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor.data, -1, 1)
            if module.running_var is not None:
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def layers_with_norms(dims):
    """A norm after each kind of layer, plain and grouped, with and without biases and norm parameters."""
    conv, transpose, norm = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "ConvTranspose", "BatchNorm"))
    return nn.Sequential(
        conv(4, 6, 3, padding="same"), norm(6), nn.ReLU(True),
        conv(6, 4, 4, 2, 1, groups=2, bias=False), norm(4, affine=False), nn.Tanh(),
        transpose(4, 4, 3, 2, 1, output_padding=1, groups=2), norm(4, eps=1e-3),
    )  # fmt: skip


class EveryLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(map(layers_with_norms, (1, 2, 3)))
        self.linear = nn.Sequential(
            nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3)
        )  # fmt: skip

    def forward(self, line, image, volume):
        line, image, volume = (part(x) for part, x in zip(self.parts, (line, image, volume)))
        return {"line": self.linear(line.flatten(1)), "rest": (image, volume)}


class HandWritten(nn.Module):
    """Functional calls, a layer called twice, tied weights, a computed weight, and norms that cannot be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.again.weight = self.conv.weight
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(5))
        self.batch_statistics = nn.BatchNorm2d(3, track_running_stats=False)
        self.instance_norm = nn.InstanceNorm2d(3, affine=True)
        self.filter = nn.Parameter(torch.randn(3, 3, 1, 1))
        self.linear, self.over_positions = nn.Linear(8, 4), nn.BatchNorm1d(3)

    def forward(self, x):
        x = F.relu(self.norms[0](self.conv(self.norms[1](x))))
        x = F.relu_(self.norms[2](self.again(x))) + self.norms[2](self.conv(x))
        x = self.norms[3](F.conv2d(x, weight=self.filter.tanh(), bias=None))
        y = self.conv(x)
        x = self.instance_norm(self.batch_statistics(self.norms[4](y) + y))
        return self.over_positions(self.linear(x.mean(2)))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.calls


def spectral():
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(144, 2))
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Flatten(), linear
    return gan_fast.nn.spectral_norm(nn.Sequential(*layers))


def hooked():
    """torch.nn.utils.spectral_norm leaves tensors with gradients in the module."""
    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))


def gan_fast_modules():
    act = {"activation": "leaky_relu", "negative_slope": 0.2}
    return gan_fast.nn.ChannelsLastSequential(
        gan_fast.nn.ConvBNAct2d(3, 8, 4, 2, 1, **act),
        gan_fast.nn.ConvTransposeBNAct2d(8, 4, 4, 2, 1, groups=2, activation="sigmoid"),
        gan_fast.nn.InstanceNormAct2d(4, affine=True),
        gan_fast.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        gan_fast.nn.BatchNormAct2d(4, activation="tanh"),
        nn.Flatten(),
        gan_fast.nn.MinibatchDiscrimination(256, 3, 2),
        gan_fast.nn.MinibatchStdDev(None),
        gan_fast.nn.LeakyReLU(0.1),
    )


def images(n):
    return (torch.randn(n, 3, 8, 8),)


# For each model: its constructor, a function that draws a batch of n inputs, and the number of norms that stay.
MODELS = {
    "generator": (lambda: DCGANGenerator(8, 3, 16, 4), lambda n: (torch.randn(n, 8),), 0),
    "discriminator": (lambda: DCGANDiscriminator(3, 16, 4), lambda n: (torch.randn(n, 3, 16, 16),), 0),
    "every layer, fused": (
        lambda: gan_fast.fuse(EveryLayer()), lambda n: tuple(torch.randn(n, 4, *(4,) * d) for d in (1, 2, 3)), 0,
    ),
    "hand-written": (HandWritten, images, 4),
    "hand-written, fused": (lambda: gan_fast.fuse(HandWritten()), images, 4),
    "spectral norm": (spectral, images, 0),
    "hooks": (hooked, images, 0),
    "gan_fast": (gan_fast_modules, images, 0),
}  # fmt: skip


def built(name):
    """A model in training mode that has run, and its draw and norms."""
    build, draw, norms = MODELS[name]
    model = build()
    model(*draw(4))
    return with_random_norms(model), draw, norms


def close(results, wanted):
    results, wanted = map(torch.utils._pytree.tree_leaves, (results, wanted))
    assert len(results) == len(wanted)
    for result, want in zip(results, wanted):
        assert result.shape == want.shape
        assert (result - want).abs().max() <= 1e-5 * max(1, want.abs().max())


def evaluated(model, *inputs):
    model.eval()
    with torch.no_grad():
        output = model(*inputs)
    model.train()
    return output


def operators(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def run(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [torch.from_numpy(a) for a in session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})]


def state_of(model):
    tensors = {name: (t, t._version, t.clone(), t.requires_grad) for name, t in named_tensors(model)}
    return tensors, [(type(module), module.training) for module in model.modules()], torch.get_rng_state()


def named_tensors(model):
    return [*model.named_parameters(), *model.named_buffers()]


def assert_unchanged(model, before):
    tensors, modules, random_state = before
    assert [(type(module), module.training) for module in model.modules()] == modules
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [name for name, _ in named_tensors(model)] == list(tensors)
    for name, tensor in named_tensors(model):
        same, version, value, requires_grad = tensors[name]
        assert tensor is same
        assert (tensor._version, tensor.requires_grad) == (version, requires_grad)
        assert torch.equal(tensor, value)


@pytest.mark.parametrize("name", ["generator", "hand-written", "hand-written, fused", "spectral norm", "hooks"])
def test_program_matches_evaluation_and_has_no_norms(name):
    model, draw, norms = built(name)
    inputs = draw(1)
    before = state_of(model)
    program = export.to_exported_program(model, inputs)
    assert_unchanged(model, before)
    assert sum("batch_norm" in operator for operator in operators(program)) == norms
    assert not any("gan_fast" in operator for operator in operators(program))
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    loaded = torch.export.load(saved).module()
    for n in (1, 2, 5):
        inputs = draw(n)
        close(loaded(*inputs), evaluated(model, *inputs))


@pytest.mark.parametrize("name", ["discriminator", "every layer, fused", "gan_fast"])
def test_onnx_matches_evaluation_and_has_no_norms(name, tmp_path):
    model, draw, _ = built(name)
    inputs = draw(1)
    before = state_of(model)
    export.to_onnx(model, tmp_path / "model.onnx", inputs)
    assert_unchanged(model, before)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    written = onnx.load(tmp_path / "model.onnx")
    assert "BatchNormalization" not in {node.op_type for node in written.graph.node}
    assert {node.domain for node in written.graph.node} == {""}
    assert not written.functions
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in written.graph.input} == {"batch"}
    # No stack traces, which contain this machine's paths.
    assert b'File "' not in (tmp_path / "model.onnx").read_bytes()
    for n in (1, 2, 5):
        inputs = draw(n)
        close(run(tmp_path / "model.onnx", *inputs), evaluated(model, *inputs))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("generator", {}, ["output"]),
        ("generator", {"output_names": ["images"]}, ["images"]),
        ("every layer, fused", {}, ["output_0", "output_1", "output_2"]),
    ],
)
def test_output_names_are_given_or_default(name, options, expected, tmp_path):
    model, draw, _ = built(name)
    export.to_onnx(model, tmp_path / "x.onnx", draw(2), check=False, **options)
    assert [value.name for value in onnx.load(tmp_path / "x.onnx").graph.output] == expected


class NamedOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x + self.output


def test_default_output_name_avoids_parameter_names(tmp_path):
    export.to_onnx(NamedOutput(), tmp_path / "x.onnx", X)
    assert [value.name for value in onnx.load(tmp_path / "x.onnx").graph.output] == ["output_"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"1 different names, got \[\]"),
        (["a", "b"], "1 different names, got"),
        ("a", "1 different names, got 'a'"),
        (["output"], "that no input or parameter has, got output"),
        (["x"], "that no input or parameter has, got x"),
    ],
)
def test_wrong_output_names_raise(names, message, tmp_path):
    with pytest.raises(ValueError, match=f"^to_onnx: expected output_names {message}"):
        export.to_onnx(NamedOutput(), tmp_path / "x.onnx", X, output_names=names)


class PixelNorm(nn.Module):
    def forward(self, x):
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt() * 1.00001


def test_small_constants_are_kept(tmp_path):
    """onnxscript's optimizer would round them to zero and one."""
    x = torch.tensor([[0.0, 0.0], [1e-4, 1e-4], [100.0, 0.0]])
    export.to_onnx(PixelNorm(), tmp_path / "x.onnx", x)
    (result,) = run(tmp_path / "x.onnx", x)
    assert torch.allclose(result, PixelNorm()(x), rtol=1e-6, atol=0)


def test_fixed_batch_size_rejects_other_sizes():
    """Groups of four and a constant shape work for no other batch size."""
    model, x = nn.Sequential(gan_fast.nn.MinibatchStdDev(4), nn.Unflatten(0, (2, 4))), torch.randn(8, 6)
    program = export.to_exported_program(model, x, dynamic_batch=False).module()
    assert torch.equal(program(x), model(x))
    with pytest.raises(AssertionError):
        program(torch.randn(4, 6))
    # Inputs without a common batch size.
    scaled = export.to_exported_program(Scaling(), (torch.ones(2, 3), torch.ones(3)), dynamic_batch=False).module()
    assert torch.equal(scaled(torch.ones(2, 3), 3 * torch.ones(3)), 3 * torch.ones(2, 3))


class Scaling(nn.Module):
    def forward(self, x, scale):
        return x * scale


def test_scalar_input_has_no_batch_dimension():
    program = export.to_exported_program(Scaling(), (torch.ones(1, 3), torch.tensor(2.0))).module()
    assert torch.equal(program(torch.ones(4, 3), torch.tensor(5.0)), 5 * torch.ones(4, 3))


def test_buffer_changed_by_evaluation_is_exported_but_not_to_onnx(tmp_path):
    model = Counting()
    model(torch.zeros(1, 1))
    program = export.to_exported_program(model, torch.zeros(2, 1)).module()
    assert [program(torch.zeros(3, 1))[0].item() for _ in range(3)] == [2, 3, 4]
    assert model.calls == 1
    with pytest.raises(ValueError, match="whose forward changes no buffers in evaluation mode, got calls"):
        export.to_onnx(model, tmp_path / "x.onnx", torch.zeros(2, 1))
    assert list(tmp_path.iterdir()) == []


def test_random_state_is_unchanged_and_not_exported():
    state = torch.get_rng_state()
    program = export.to_exported_program(Noisy(), X).module()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(program(X), program(X))


def test_export_ignores_the_callers_modes():
    model, x = DCGANGenerator(8, 1, 16, 2), torch.randn(2, 8, requires_grad=True)
    with torch.inference_mode(), torch.autocast("cpu"), gan_fast.use_backend("cpu"):
        program = export.to_exported_program(model, x)
    assert not any("to.dtype" in operator or "_to_copy" in operator for operator in operators(program))
    program.module()(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_half_precision_is_written_and_float64_convolution_rejected(tmp_path):
    """onnxruntime has float16 convolutions, but no float64 ones."""
    conv = with_random_norms(nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)))
    with pytest.raises(RuntimeError, match=r"model that onnxruntime can run, got .*NOT_IMPLEMENTED.*check=False"):
        export.to_onnx(conv.double(), tmp_path / "conv.onnx", torch.randn(2, 2, 8, dtype=torch.double))
    assert not (tmp_path / "conv.onnx").exists()
    export.to_onnx(conv.half(), tmp_path / "conv.onnx", torch.randn(2, 2, 8).half())
    assert "Conv" in {node.op_type for node in onnx.load(tmp_path / "conv.onnx").graph.node}


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("shape", torch.ones(4))

    def forward(self, x):
        return x + torch.randn_like(self.shape)


class Direct(nn.Module):
    def forward(self, x):
        one = torch.ones(4)
        return torch.ops.gan_fast.batch_norm_act_forward(x, one, one, None, None, False, 0.1, 1e-5, "relu", 0.0)[0]


class SingularValues(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


class Dual(nn.Module):
    def forward(self, x):
        return x, None


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


X = torch.ones(2, 4)
BAD = [
    (None, X, TypeError, "expected model type Module, got NoneType"),
    (torch.relu, X, TypeError, "expected model type Module, got builtin_function_or_method"),
    (nn.LazyLinear(2), X, ValueError, "expected model without lazy parameters, got weight; run the model once first"),
    (Locked(), X, ValueError, "expected model that copy.deepcopy can copy, got TypeError: cannot pickle"),
    (nn.Tanh(), [X], TypeError, r"expected example_inputs\[0\] type Tensor, got list"),
    (nn.Tanh(), (X, 1), TypeError, r"expected example_inputs\[1\] type Tensor, got int"),
    (nn.Tanh(), (), ValueError, r"expected example_inputs to contain at least one tensor, got \(\)"),
    (
        nn.Tanh(),
        X[:0],
        ValueError,
        r"example_inputs with the same batch size, at least 1, got shapes \(0, 4\)",
    ),
    (Scaling(), (X, X[0]), ValueError, r"at least 1, got shapes \(2, 4\), \(4,\); dynamic_batch=False"),
    (Scaling(), X, ValueError, r"expected example_inputs that model accepts, got shapes \(2, 4\): TypeError: .*scale"),
    (nn.Linear(3, 1), X, ValueError, r"expected example_inputs that model accepts, got shapes \(2, 4\): RuntimeError"),
    (
        Branching(),
        X,
        ValueError,
        "model that torch.export can trace, got GuardOnDataDependentSymNode: Could not",
    ),
    (
        nn.Unflatten(0, (2, 1)),
        X,
        ValueError,
        r"model that works for any batch size, got .*\(2\); dynamic_batch=False",
    ),
    (gan_fast.nn.MinibatchStdDev(4), torch.ones(8, 4), ValueError, "expected model that works for any batch size, got"),
    (Direct(), X, ValueError, "expected model of ATen operators, got one that calls gan_fast.batch_norm_act_forward"),
]
BAD_FOR_ONNX = [
    (Dual(), X, TypeError, "expected model output 1 type Tensor, got NoneType"),
    (Noisy(), X, RuntimeError, "expected onnxruntime's output 0 to be within .* got a difference of [0-9]"),
    (
        SingularValues(),
        X,
        ValueError,
        "expected model of operators that ONNX supports, got DispatchError: No ONNX function.*svd",
    ),
]


@pytest.mark.parametrize(("model", "inputs", "error", "message"), BAD)
def test_bad_argument_raises(model, inputs, error, message, capfd):
    with pytest.raises(error, match=f"^to_exported_program: .*{message}"):
        export.to_exported_program(model, inputs)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("model", "inputs", "error", "message"), [BAD[0], BAD[4], BAD[-4], *BAD_FOR_ONNX])
def test_failed_export_keeps_the_existing_file(model, inputs, error, message, tmp_path, capfd):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"before")
    with pytest.raises(error, match=f"^to_onnx: .*{message}"):
        export.to_onnx(model, path, inputs)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (3, TypeError, "expected path type str or Path, got int"),
        (".", ValueError, r"expected path of a file, got the folder \."),
        ("nowhere/x.onnx", ValueError, "expected path in an existing folder, got nowhere/x.onnx"),
    ],
)
def test_bad_path_raises(path, error, message):
    with pytest.raises(error, match=f"^to_onnx: {message}"):
        export.to_onnx(nn.Tanh(), path, X)


def test_unwritable_folder_raises(tmp_path, monkeypatch):
    # The tests may run as root, to whom every folder is writable.
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(ValueError, match=r"^to_onnx: expected path in a writable folder, got"):
        export.to_onnx(nn.Tanh(), tmp_path / "x.onnx", X)


def test_full_disk_keeps_the_existing_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_onnx", lambda *_: b"after")
    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "x.onnx").write_bytes(b"before")
    with pytest.raises(
        FileError, match=r"x\.onnx: cannot be saved .*No space left on device.* an existing file is unchanged"
    ):
        export.to_onnx(nn.Tanh(), tmp_path / "x.onnx", X, check=False)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_raises(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"to_onnx: expected onnx .*to be installed, got no {package}; run: pip install 'gan_fast\[onnx\]'"
    with pytest.raises(ImportError, match=message):
        export.to_onnx(nn.Tanh(), tmp_path / "x.onnx", X, check=True)


def test_missing_onnxruntime_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(export, "_onnx", lambda *_: b"after")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with caplog.at_level(logging.WARNING):
        export.to_onnx(nn.Tanh(), tmp_path / "x.onnx", X)
    assert [record.message for record in caplog.records] == [
        f"to_onnx: {tmp_path / 'x.onnx'} was not checked, because onnxruntime is not installed"
    ]
    assert (tmp_path / "x.onnx").read_bytes() == b"after"


def test_model_too_large_for_one_file_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_MAX_ONNX_BYTES", 79)
    with pytest.raises(ValueError, match="expected model parameters of at most 79 bytes in one file, got 80"):
        export.to_onnx(nn.Linear(4, 4), tmp_path / "x.onnx", X)


def test_export_prints_nothing_and_imports_late(tmp_path):
    """In a new process, because the exporters print when they are imported first."""
    code = f"""
import sys, gan_fast
assert not {{"onnx", "onnxscript", "onnxruntime", "torch._dynamo"}} & set(sys.modules)
import torch
gan_fast.export.to_onnx(torch.nn.Linear(4, 2), {str(tmp_path / "x.onnx")!r}, torch.ones(2, 4))
"""
    done = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "x.onnx").exists()
