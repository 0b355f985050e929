"""Exported models give what evaluation gives, without batch norm, gan_fast or a trace on the model."""

from __future__ import annotations

import copy
import io

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gan_fast
from gan_fast import export
from gan_fast.models import DCGANDiscriminator, DCGANGenerator


def lived_in(model):
    """With norms that have seen data: statistics, weights and biases of no layer are what they began as."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor.data, -1, 1)
            if module.running_var is not None:
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model


class EveryLayer(nn.Module):
    """A norm behind each kind of layer, plain and grouped, with and without biases and parameters of the norm."""

    def __init__(self):
        super().__init__()
        norms = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
        plain = nn.Conv1d, nn.Conv2d, nn.Conv3d
        transposed = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
        self.chains = nn.ModuleList(
            nn.Sequential(
                conv(4, 8, 3, padding="same"), norm(8), nn.ReLU(True),
                conv(8, 6, 4, 2, 1, groups=2, bias=False), norm(6, affine=False), nn.Tanh(),
                transpose(6, 12, 3, 2, 1, output_padding=1, groups=3), norm(12, eps=1e-3),
                transpose(12, 4, 3, 1, 1, bias=False), norm(4), nn.Flatten(),
                nn.LazyLinear(5), norms[0](5), nn.Linear(5, 3, bias=False), norms[0](3),
            )
            for norm, conv, transpose in zip(norms, plain, transposed)
        )  # fmt: skip

    def forward(self, line, image, volume):
        return {"line": self.chains[0](line), "rest": (self.chains[1](image), self.chains[2](volume))}


class HandWritten(nn.Module):
    """Functional calls, a layer used twice, tied weights, a computed weight, and norms that cannot be folded."""

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
        seen = self.conv(x)
        x = self.instance_norm(self.batch_statistics(self.norms[4](seen) + seen))
        return self.over_positions(self.linear(x.mean(2)))


class Moving(nn.Module):
    """Counts its calls, and draws random numbers in training alone."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        self.calls += 1
        return self.dropout(x) + self.calls


def spectral():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(144, 2)
    return gan_fast.nn.spectral_norm(nn.Sequential(*layers))


def hooked():
    """Torch's older norms of weights, after a pass that leaves tensors with gradients in the modules."""
    model = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    model(torch.randn(2, 3, 8, 8))
    return model


def of_ours():
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


# What builds a model, what draws a batch of n for it, and how many of its norms stay.
MODELS = {
    "generator": (lambda: DCGANGenerator(8, 3, 16, 4), lambda n: (torch.randn(n, 8),), 0),
    "discriminator": (lambda: DCGANDiscriminator(3, 16, 4), lambda n: (torch.randn(n, 3, 16, 16),), 0),
    "every layer": (EveryLayer, lambda n: tuple(torch.randn(n, 4, *(4,) * d) for d in (1, 2, 3)), 0),
    "hand-written": (HandWritten, images, 4),
    "spectral norm": (spectral, images, 0),
    "hooks": (hooked, images, 0),
    "ours": (of_ours, images, 0),
}


@pytest.fixture(params=MODELS)
def case(request):
    build, draw, norms = MODELS[request.param]
    model = build()
    with torch.no_grad():
        model(*draw(4))
    return lived_in(model), draw, norms


def close(results, wanted):
    results, wanted = map(torch.utils._pytree.tree_leaves, (results, wanted))
    assert len(results) == len(wanted)
    for result, want in zip(results, wanted):
        assert result.shape == want.shape
        assert (result - want).abs().max() <= 1e-5 * max(1, want.abs().max())


def norms_in(program):
    return sum("batch_norm" in str(node.target) for node in program.graph.nodes if node.op == "call_function")


def run(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [torch.from_numpy(a) for a in session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})]


def test_program_is_evaluation_without_its_norms(case):
    model, draw, norms = case
    program = export.to_exported_program(model, draw(2))
    assert norms_in(program) == norms
    assert not any("gan_fast" in str(node.target) for node in program.graph.nodes)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    loaded = torch.export.load(saved).module()
    for n in (1, 2, 5):
        inputs = draw(n)
        close(loaded(*inputs), copy.deepcopy(model).eval()(*inputs) if model is not None else None)


def test_onnx_is_evaluation_without_its_norms(case, tmp_path):
    model, draw, norms = case
    export.to_onnx(model, tmp_path / "model.onnx", draw(1))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    written = onnx.load(tmp_path / "model.onnx")
    assert sum(node.op_type == "BatchNormalization" for node in written.graph.node) <= norms
    assert {node.domain for node in written.graph.node} == {""}
    assert not written.functions
    for n in (1, 2, 5):
        inputs = draw(n)
        close(run(tmp_path / "model.onnx", *inputs), copy.deepcopy(model).eval()(*inputs))
