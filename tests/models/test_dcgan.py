from __future__ import annotations

import pytest
import torch
from torch import nn

import gan_fast
from gan_fast.models import DCGANDiscriminator, DCGANGenerator


@pytest.mark.parametrize("image_size", [16, 32, 64, 128])
def test_output_shape_and_range_for_every_image_size(image_size: int) -> None:
    generator = DCGANGenerator(latent_dim=10, channels=3, image_size=image_size, width=4)
    discriminator = DCGANDiscriminator(channels=3, image_size=image_size, width=4)
    images = generator(torch.randn(2, 10))
    assert images.shape == (2, 3, image_size, image_size)
    assert images.abs().max() <= 1
    assert torch.equal(generator.eval()(torch.ones(2, 10)), generator(torch.ones(2, 10, 1, 1)))
    logits = discriminator(images)
    assert logits.shape == (2,)


def test_layers_at_64_pixels_match_the_authors_code() -> None:
    """The code halves the paper's widths of 1024-512-256-128."""
    generator, discriminator = DCGANGenerator(), DCGANDiscriminator()
    counts = [sum(p.numel() for p in m.parameters()) for m in (generator, discriminator)]
    assert counts == [3576704, 2765568]
    convolutions = [m for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        (100, 512), (512, 256), (256, 128), (128, 64), (64, 3),
    ]  # fmt: skip
    assert [(m.kernel_size, m.stride, m.padding) for m in convolutions] == [
        ((4, 4), (1, 1), (0, 0)),
        *[((4, 4), (2, 2), (1, 1))] * 4,
    ]


def test_initialization_matches_dcgan() -> None:
    generator = DCGANGenerator()
    for module in generator.modules():
        if isinstance(module, nn.ConvTranspose2d):
            assert module.weight.mean().abs() < 1e-3
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.4)
            assert not module.bias.count_nonzero()


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_discriminator_matches_torch_layers_to_second_order(norm: str) -> None:
    discriminator = DCGANDiscriminator(channels=1, image_size=16, width=8, norm=norm).double()
    layers: list[nn.Module] = []
    for block in discriminator.blocks:
        layers.append(block.conv)
        if hasattr(block, "bn"):
            bn = nn.BatchNorm2d(block.bn.num_features).double()
            bn.load_state_dict(block.bn.state_dict())
            layers += [bn, nn.LeakyReLU(0.2)]
        elif block.activation != "identity":
            layers.append(nn.LeakyReLU(0.2))
    eager = nn.Sequential(*layers)
    x = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    results = []
    for model in (discriminator, eager):
        images = x.clone().requires_grad_()
        output = model(images).flatten()
        (grad,) = torch.autograd.grad(output.square().sum(), images, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), images)
        results.append((output, grad, second))
    for got, want in zip(*results):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_one_pass_gives_logits_and_features(norm: str, memory_format: torch.memory_format) -> None:
    discriminator = DCGANDiscriminator(channels=3, image_size=32, width=8, norm=norm).eval()
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=memory_format)
    runs = []
    handle = discriminator.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    logits, features = discriminator.forward_with_features(x)
    handle.remove()
    assert len(runs) == 1
    assert torch.equal(logits, discriminator(x))
    assert torch.equal(features, discriminator.features(x))
    assert features.shape == (4, 32, 4, 4)
    assert features.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(discriminator.blocks[-1](features).flatten(), logits)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_logits_and_features_match_blocks_to_second_order(norm: str) -> None:
    discriminator = DCGANDiscriminator(channels=1, image_size=16, width=8, norm=norm).double()

    def by_blocks(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for block in discriminator.blocks[:-1]:
            images = block(images)
        return discriminator.blocks[-1](images).flatten(), images

    x = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    results = []
    for function in (discriminator.forward_with_features, by_blocks):
        images = x.clone().requires_grad_()
        logits, features = function(images)
        inputs = [images, *discriminator.parameters()]
        grads = torch.autograd.grad(logits.square().sum() + features.pow(3).sum(), inputs, create_graph=True)
        results.append((logits, features, *grads, *torch.autograd.grad(grads[0].square().sum(), inputs[:2])))
    for got, want in zip(*results):
        torch.testing.assert_close(got, want)


def test_state_dict_keys_name_conv_and_bn() -> None:
    keys = list(DCGANGenerator(image_size=16).state_dict())
    assert keys[:3] == ["blocks.0.conv.weight", "blocks.0.bn.weight", "blocks.0.bn.bias"]
    assert keys[-1] == "blocks.2.conv.weight"


def test_compiles_without_graph_breaks() -> None:
    generator = DCGANGenerator(latent_dim=4, channels=1, image_size=16, width=4)
    discriminator = DCGANDiscriminator(channels=1, image_size=16, width=4)
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: discriminator(generator(z)), fullgraph=True, backend="aot_eager")
    assert compiled(torch.randn(3, 4)).shape == (3,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DCGANGenerator(image_size=48),
            "DCGANGenerator: expected image_size one of 16, 32, 64, 128, got 48",
        ),
        (lambda: DCGANGenerator(latent_dim=0), "DCGANGenerator: expected latent_dim at least 1, got 0"),
        (lambda: DCGANDiscriminator(width=-1), "DCGANDiscriminator: expected width at least 1, got -1"),
        (
            lambda: DCGANDiscriminator(norm="layer"),
            "DCGANDiscriminator: expected norm one of batch, none, got 'layer'",
        ),
        (
            lambda: DCGANGenerator(image_size=16)(torch.ones(2, 3)),
            "DCGANGenerator: expected latent shape (N, 100) or (N, 100, 1, 1), got (2, 3)",
        ),
        (
            lambda: DCGANDiscriminator(image_size=16)(torch.ones(2, 1, 16, 16)),
            "DCGANDiscriminator: expected images shape (N, 3, 16, 16), got (2, 1, 16, 16)",
        ),
    ],
)
def test_bad_argument_raises(make, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    assert str(caught.value) == message


def test_models_are_public() -> None:
    assert gan_fast.models.DCGANGenerator is DCGANGenerator
