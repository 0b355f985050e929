"""GAN networks as public code writes them, on which tests and benchmarks try ``fuse``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import (
    attention,
    conditional,
    dcgan,
    domains,
    handwritten,
    latent,
    progressive,
    resnets,
    sequences,
    super_resolution,
    unets,
    upsampling,
    video,
)
from . import image_to_image as i2i


@dataclass(frozen=True)
class Entry:
    """One network.

    Args:
        name: a unique name.
        build: makes the network at test size; the result depends only on ``torch.manual_seed``.
        inputs: makes the inputs of ``forward`` at that size, always the same: float32, and int64 for labels.
        workload: makes the network at its paper's width, and inputs of a size for benchmarks.
        conv_blocks: whether most time goes into convolution, norm and parameter-free activation in that order.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    workload: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
    conv_blocks: bool


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def labels(count: int, classes: int) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(3))


def onehot(count: int, classes: int) -> Tensor:
    return torch.eye(classes)[labels(count, classes)]


def small_opt() -> Namespace:
    return upsampling.parse_opt(["--latent_dim=8", "--n_filters=8", "--img_size=32"])


ZOO: tuple[Entry, ...] = (
    Entry(
        "dcgan_generator",
        lambda: dcgan.Generator(ngpu=1, nz=8, ngf=4, nc=3).apply(dcgan.weights_init),
        lambda: (noise(3, 8, 1, 1),),
        lambda: (dcgan.Generator(ngpu=1, nz=100, ngf=64, nc=3).apply(dcgan.weights_init), (noise(16, 100, 1, 1),)),
        conv_blocks=True,
    ),
    Entry(
        "dcgan_discriminator",
        lambda: dcgan.Discriminator(ngpu=1, ndf=4, nc=3).apply(dcgan.weights_init),
        lambda: (images(3, 3, 64, 64),),
        lambda: (dcgan.Discriminator(ngpu=1, ndf=64, nc=3).apply(dcgan.weights_init), (images(16, 3, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "wgan_generator",
        lambda: dcgan.NamedGenerator(32, 8, 3, 4, ngpu=1, n_extra_layers=1).apply(dcgan.weights_init),
        lambda: (noise(3, 8, 1, 1),),
        lambda: (
            dcgan.NamedGenerator(64, 100, 3, 64, ngpu=1, n_extra_layers=1).apply(dcgan.weights_init),
            (noise(16, 100, 1, 1),),
        ),
        conv_blocks=True,
    ),
    Entry(
        "wgan_critic",
        lambda: dcgan.NamedCritic(32, 3, 4, ngpu=1, n_extra_layers=1).apply(dcgan.weights_init),
        lambda: (images(3, 3, 32, 32),),
        lambda: (
            dcgan.NamedCritic(64, 3, 64, ngpu=1, n_extra_layers=1).apply(dcgan.weights_init),
            (images(16, 3, 64, 64),),
        ),
        conv_blocks=True,
    ),
    Entry(
        "handwritten_generator",
        lambda: handwritten.Generator(d=4),
        lambda: (noise(3, 100, 1, 1),),
        lambda: (handwritten.Generator(d=64), (noise(16, 100, 1, 1),)),
        conv_blocks=True,
    ),
    Entry(
        "handwritten_discriminator",
        lambda: handwritten.Discriminator(d=4),
        lambda: (images(3, 1, 64, 64),),
        lambda: (handwritten.Discriminator(d=64), (images(16, 1, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "helper_generator",
        lambda: handwritten.HelperGenerator(8, conv_dim=4),
        lambda: (noise(3, 8),),
        lambda: (handwritten.HelperGenerator(100, conv_dim=64), (noise(128, 100),)),
        conv_blocks=True,
    ),
    Entry(
        "helper_discriminator",
        lambda: handwritten.HelperDiscriminator(conv_dim=4),
        lambda: (images(3, 3, 32, 32),),
        lambda: (handwritten.HelperDiscriminator(conv_dim=64), (images(64, 3, 32, 32),)),
        conv_blocks=True,
    ),
    Entry(
        "loop_generator",
        lambda: handwritten.LoopGenerator(8, channels=(16, 8, 6, 4)),
        lambda: (noise(5, 8),),
        lambda: (handwritten.LoopGenerator(100), (noise(16, 100),)),
        conv_blocks=True,
    ),
    Entry(
        "loop_discriminator",
        lambda: handwritten.LoopDiscriminator(channels=(3, 4, 6, 8)),
        lambda: (images(3, 3, 32, 32),),
        lambda: (handwritten.LoopDiscriminator(), (images(16, 3, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "feature_discriminator",
        lambda: handwritten.FeatureDiscriminator(nf=4, n_layers=3),
        lambda: (images(3, 3, 32, 32),),
        lambda: (handwritten.FeatureDiscriminator(), (images(16, 3, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "tuple_discriminator",
        lambda: handwritten.TupleDiscriminator(ndf=4),
        lambda: (images(3, 3, 64, 64),),
        lambda: (handwritten.TupleDiscriminator(), (images(16, 3, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "cyclegan_generator",
        lambda: i2i.init_weights(i2i.ResnetGenerator(3, 3, 4, i2i.norm_by_name("instance"), n_blocks=2)),
        lambda: (images(2, 3, 16, 16),),
        lambda: (
            i2i.init_weights(i2i.ResnetGenerator(3, 3, 64, i2i.norm_by_name("instance"), n_blocks=6)),
            (images(1, 3, 96, 96),),
        ),
        conv_blocks=True,
    ),
    Entry(
        "cyclegan_generator_dropout",
        lambda: i2i.ResnetGenerator(3, 3, 4, n_blocks=1, use_dropout=True, padding_type="replicate"),
        lambda: (images(2, 3, 16, 16),),
        lambda: (i2i.ResnetGenerator(3, 3, 64, use_dropout=True, n_blocks=6), (images(1, 3, 96, 96),)),
        conv_blocks=True,
    ),
    Entry(
        "pix2pix_unet",
        lambda: i2i.init_weights(i2i.UnetGenerator(3, 3, 6, 4, i2i.norm_by_name("batch"), use_dropout=True)),
        lambda: (images(2, 3, 64, 64),),
        lambda: (
            i2i.init_weights(i2i.UnetGenerator(3, 3, 7, 64, i2i.norm_by_name("batch"), use_dropout=True)),
            (images(2, 3, 128, 128),),
        ),
        conv_blocks=True,
    ),
    Entry(
        "patchgan",
        lambda: i2i.init_weights(i2i.NLayerDiscriminator(6, 4, 3, i2i.norm_by_name("batch"))),
        lambda: (images(2, 6, 32, 32),),
        lambda: (
            i2i.init_weights(i2i.NLayerDiscriminator(6, 64, 3, i2i.norm_by_name("batch"))),
            (images(2, 6, 128, 128),),
        ),
        conv_blocks=True,
    ),
    Entry(
        "patchgan_instance",
        lambda: i2i.NLayerDiscriminator(3, 4, 2, i2i.norm_by_name("instance")),
        lambda: (images(2, 3, 32, 32),),
        lambda: (i2i.NLayerDiscriminator(3, 64, 3, i2i.norm_by_name("instance")), (images(4, 3, 128, 128),)),
        conv_blocks=True,
    ),
    Entry(
        "pair_discriminator",
        lambda: i2i.PairDiscriminator(3, 4),
        lambda: (images(2, 3, 32, 32), images(2, 3, 32, 32) / 2),
        lambda: (i2i.PairDiscriminator(3, 64), (images(8, 3, 128, 128), images(8, 3, 128, 128) / 2)),
        conv_blocks=True,
    ),
    Entry(
        "multiscale_discriminator",
        lambda: i2i.MultiscaleDiscriminator(3, 4, 2, i2i.norm_by_name("instance"), num_D=2),
        lambda: (images(2, 3, 32, 32),),
        lambda: (
            i2i.MultiscaleDiscriminator(6, 64, 3, i2i.norm_by_name("instance"), num_D=3),
            (images(1, 6, 128, 128),),
        ),
        conv_blocks=True,
    ),
    Entry(
        "unet_by_name",
        lambda: unets.GeneratorUNet(nf=4),
        lambda: (images(2, 3, 32, 32),),
        lambda: (unets.GeneratorUNet(nf=64), (images(2, 3, 128, 128),)),
        conv_blocks=True,
    ),
    Entry(
        "unet_of_segmentation",
        lambda: unets.UNet(3, 3, nf=4),
        lambda: (images(2, 3, 18, 18),),
        lambda: (unets.UNet(3, 3, nf=64), (images(1, 3, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "unet_of_segmentation_transposed",
        lambda: unets.UNet(3, 3, nf=4, bilinear=False),
        lambda: (images(2, 3, 18, 18),),
        lambda: (unets.UNet(3, 3, nf=64, bilinear=False), (images(1, 3, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "stargan_generator",
        lambda: domains.StarGANGenerator(4, 3, repeat_num=2),
        lambda: (images(2, 3, 16, 16), onehot(2, 3)),
        lambda: (domains.StarGANGenerator(), (images(2, 3, 64, 64), onehot(2, 5))),
        conv_blocks=True,
    ),
    Entry(
        "stargan_discriminator",
        lambda: domains.StarGANDiscriminator(32, 4, 3, repeat_num=3),
        lambda: (images(2, 3, 32, 32),),
        lambda: (domains.StarGANDiscriminator(repeat_num=5), (images(4, 3, 128, 128),)),
        conv_blocks=False,
    ),
    Entry(
        "context_encoder",
        lambda: unets.ContextEncoder(nf=4, nz=12),
        lambda: (images(3, 3, 64, 64),),
        lambda: (unets.ContextEncoder(nz=1000), (images(4, 3, 128, 128),)),
        conv_blocks=True,
    ),
    Entry(
        "munit_generator",
        lambda: domains.MUNITGenerator(dim=4, style_dim=3, mlp_dim=8, n_downsample=1, n_res=1),
        lambda: (images(2, 3, 16, 16),),
        lambda: (domains.MUNITGenerator(n_res=2), (images(1, 3, 64, 64),)),
        conv_blocks=False,
    ),
    Entry(
        "singan_generator",
        lambda: unets.SinGANGenerator(nfc=6, min_nfc=4),
        lambda: (noise(1, 3, 26, 30), images(1, 3, 26, 30)),
        lambda: (unets.SinGANGenerator(), (noise(1, 3, 200, 240), images(1, 3, 200, 240))),
        conv_blocks=True,
    ),
    Entry(
        "upsampling_generator",
        lambda: upsampling.Generator(small_opt()).apply(upsampling.weights_init_normal),
        lambda: (noise(3, 8),),
        lambda: (upsampling.Generator(upsampling.parse_opt()), (noise(32, 100),)),
        conv_blocks=True,
    ),
    Entry(
        "upsampling_discriminator",
        lambda: upsampling.Discriminator(small_opt()).apply(upsampling.weights_init_normal),
        lambda: (images(3, 1, 32, 32),),
        lambda: (
            upsampling.Discriminator(upsampling.parse_opt(["--img_size=64"]), nn.Sigmoid()),
            (images(256, 1, 64, 64),),
        ),
        # The norm follows activation and dropout, so that it is in no block.
        conv_blocks=False,
    ),
    Entry(
        "acgan_generator",
        lambda: conditional.ACGANGenerator(small_opt()),
        lambda: (noise(3, 8), labels(3, 10)),
        lambda: (conditional.ACGANGenerator(upsampling.parse_opt()), (noise(32, 100), labels(32, 10))),
        conv_blocks=True,
    ),
    Entry(
        "acgan_discriminator",
        lambda: conditional.ACGANDiscriminator(small_opt()),
        lambda: (images(3, 1, 32, 32),),
        lambda: (conditional.ACGANDiscriminator(upsampling.parse_opt(["--img_size=64"])), (images(256, 1, 64, 64),)),
        conv_blocks=False,
    ),
    Entry(
        "infogan_generator",
        lambda: conditional.InfoGANGenerator(6, 10, 2, nf=2),
        lambda: (noise(5, 6), onehot(5, 10), noise(5, 2) / 2),
        lambda: (conditional.InfoGANGenerator(), (noise(64, 62), onehot(64, 10), noise(64, 2) / 2)),
        conv_blocks=True,
    ),
    Entry(
        "infogan_discriminator",
        lambda: conditional.InfoGANDiscriminator(nf=2),
        lambda: (images(5, 1, 28, 28),),
        lambda: (conditional.InfoGANDiscriminator(), (images(64, 1, 28, 28),)),
        conv_blocks=True,
    ),
    Entry(
        "cdcgan_generator",
        lambda: conditional.CDCGANGenerator(4, 8),
        lambda: (noise(3, 8, 1, 1), onehot(3, 10).view(3, 10, 1, 1)),
        lambda: (conditional.CDCGANGenerator(), (noise(32, 100, 1, 1), onehot(32, 10).view(32, 10, 1, 1))),
        conv_blocks=True,
    ),
    Entry(
        "cdcgan_discriminator",
        lambda: conditional.CDCGANDiscriminator(4),
        lambda: (images(3, 1, 32, 32), onehot(3, 10)),
        lambda: (conditional.CDCGANDiscriminator(), (images(32, 1, 32, 32), onehot(32, 10))),
        conv_blocks=True,
    ),
    Entry(
        "embedding_discriminator",
        lambda: conditional.EmbeddingDiscriminator(3, 32, 10, 4),
        lambda: (images(3, 3, 32, 32), labels(3, 10)),
        lambda: (conditional.EmbeddingDiscriminator(), (images(16, 3, 64, 64), labels(16, 10))),
        conv_blocks=True,
    ),
    Entry(
        "srgan_generator",
        lambda: super_resolution.GeneratorResNet(nf=4, n_residual_blocks=2),
        lambda: (images(2, 3, 8, 8),),
        lambda: (super_resolution.GeneratorResNet(n_residual_blocks=4), (images(2, 3, 24, 24),)),
        conv_blocks=False,
    ),
    Entry(
        "srgan_generator_by_number",
        lambda: super_resolution.NumberedGenerator(2, nf=4),
        lambda: (images(2, 3, 8, 8),),
        lambda: (super_resolution.NumberedGenerator(4), (images(2, 3, 24, 24),)),
        conv_blocks=False,
    ),
    Entry(
        "srgan_discriminator",
        lambda: super_resolution.Discriminator(channels=(4, 6, 8)),
        lambda: (images(2, 3, 24, 24),),
        lambda: (super_resolution.Discriminator(), (images(4, 3, 96, 96),)),
        conv_blocks=True,
    ),
    Entry(
        "esrgan_generator",
        lambda: super_resolution.ESRGANGenerator(filters=4, num_res_blocks=2),
        lambda: (images(2, 3, 8, 8),),
        lambda: (super_resolution.ESRGANGenerator(), (images(2, 3, 32, 32),)),
        conv_blocks=False,
    ),
    Entry(
        "sngan_generator",
        lambda: resnets.SNGANGenerator(2, 8, n_blocks=2),
        lambda: (noise(3, 8),),
        lambda: (resnets.SNGANGenerator(32, n_blocks=3), (noise(16, 128),)),
        conv_blocks=True,
    ),
    Entry(
        "sngan_discriminator",
        lambda: resnets.SNGANDiscriminator(4, n_blocks=3),
        lambda: (images(2, 3, 16, 16),),
        lambda: (resnets.SNGANDiscriminator(64, n_blocks=4), (images(16, 3, 32, 32),)),
        conv_blocks=False,
    ),
    Entry(
        "projection_discriminator",
        lambda: resnets.SNGANDiscriminator(4, num_classes=5, n_blocks=2),
        lambda: (images(2, 3, 16, 16), labels(2, 5)),
        lambda: (resnets.SNGANDiscriminator(64, 10, 4), (images(16, 3, 32, 32), labels(16, 10))),
        conv_blocks=False,
    ),
    Entry(
        "sn_discriminator_by_hooks",
        lambda: resnets.PlainSNDiscriminator(4, 16),
        lambda: (images(2, 3, 16, 16),),
        lambda: (resnets.PlainSNDiscriminator(), (images(16, 3, 32, 32),)),
        conv_blocks=False,
    ),
    Entry(
        "wgan_gp_resnet_generator",
        lambda: resnets.WGANGPGenerator(4, 16 * 16 * 3).apply(resnets.he_uniform),
        lambda: (noise(3, 128),),
        lambda: (resnets.WGANGPGenerator(64).apply(resnets.he_uniform), (noise(4, 128),)),
        conv_blocks=True,
    ),
    Entry(
        "wgan_gp_resnet_critic",
        lambda: resnets.WGANGPCritic(4, 16).apply(resnets.he_uniform),
        lambda: (images(2, 3, 16, 16),),
        lambda: (resnets.WGANGPCritic(64).apply(resnets.he_uniform), (images(4, 3, 64, 64),)),
        conv_blocks=False,
    ),
    Entry(
        "instance_norm_critic",
        lambda: resnets.InstanceNormCritic(3, 4),
        lambda: (images(2, 3, 32, 32),),
        lambda: (resnets.InstanceNormCritic(), (images(16, 3, 32, 32),)),
        conv_blocks=True,
    ),
    Entry(
        "sagan_generator",
        lambda: attention.SAGANGenerator(32, 8, 4),
        lambda: (noise(3, 8),),
        lambda: (attention.SAGANGenerator(), (noise(16, 100),)),
        conv_blocks=True,
    ),
    Entry(
        "sagan_discriminator",
        lambda: attention.SAGANDiscriminator(4),
        lambda: (images(2, 3, 32, 32),),
        lambda: (attention.SAGANDiscriminator(), (images(32, 3, 64, 64),)),
        conv_blocks=False,
    ),
    Entry(
        "conditional_norm_generator",
        lambda: attention.CBNGenerator(8, 4, 5),
        lambda: (noise(3, 8), labels(3, 5)),
        lambda: (attention.CBNGenerator(), (noise(16, 128), labels(16, 10))),
        conv_blocks=False,
    ),
    Entry(
        "biggan_generator",
        lambda: attention.BigGANGenerator(2, (4, 2, 1), 9, 4, 5),
        lambda: (noise(3, 9), labels(3, 5)),
        lambda: (attention.BigGANGenerator(), (noise(16, 80), labels(16, 10))),
        conv_blocks=False,
    ),
    Entry(
        "wavegan_generator",
        lambda: sequences.WaveGANGenerator(2, 8, use_batch_norm=True),
        lambda: (noise(3, 8),),
        lambda: (sequences.WaveGANGenerator(64, use_batch_norm=True), (noise(64, 100),)),
        conv_blocks=True,
    ),
    Entry(
        "wavegan_generator_upsampling",
        lambda: sequences.WaveGANGenerator(2, 8, upsample=4),
        lambda: (noise(3, 8),),
        lambda: (sequences.WaveGANGenerator(64, upsample=4), (noise(16, 100),)),
        conv_blocks=False,
    ),
    Entry(
        "wavegan_discriminator",
        lambda: sequences.WaveGANDiscriminator(3, length=256),
        lambda: (images(4, 1, 256),),
        lambda: (sequences.WaveGANDiscriminator(64, length=4096), (images(16, 1, 4096),)),
        conv_blocks=True,
    ),
    Entry(
        "batch_shuffle_discriminator",
        lambda: sequences.BatchShuffleDiscriminator(3),
        lambda: (images(2, 1, 512),),
        lambda: (sequences.BatchShuffleDiscriminator(), (images(32, 1, 4096),)),
        conv_blocks=True,
    ),
    Entry(
        "melgan_generator",
        lambda: sequences.MelGANGenerator(6, 2, (3, 2)),
        lambda: (noise(2, 6, 12),),
        lambda: (sequences.MelGANGenerator(), (noise(4, 80, 32),)),
        conv_blocks=False,
    ),
    Entry(
        "melgan_discriminator",
        lambda: sequences.MelGANDiscriminator(2, 4, 2, 2),
        lambda: (images(2, 1, 128),),
        lambda: (sequences.MelGANDiscriminator(), (images(2, 1, 8192),)),
        conv_blocks=False,
    ),
    Entry(
        "vgan_generator",
        lambda: video.VideoGenerator(6, 2),
        lambda: (noise(3, 6),),
        lambda: (video.VideoGenerator(), (noise(4, 100),)),
        conv_blocks=True,
    ),
    Entry(
        "vgan_discriminator",
        lambda: video.VideoDiscriminator(3),
        lambda: (images(2, 3, 16, 32, 32),),
        lambda: (video.VideoDiscriminator(), (images(8, 3, 16, 32, 32),)),
        conv_blocks=True,
    ),
    Entry(
        "tgan_generator",
        lambda: video.TemporalGenerator(6, 2),
        lambda: (noise(3, 6),),
        lambda: (video.TemporalGenerator(), (noise(8, 100),)),
        conv_blocks=True,
    ),
    Entry(
        "mlp_generator",
        lambda: latent.MLPGenerator(6, (1, 8, 8), 4),
        lambda: (noise(5, 6),),
        lambda: (latent.MLPGenerator(), (noise(2048, 100),)),
        conv_blocks=False,
    ),
    Entry(
        "mlp_discriminator",
        lambda: latent.MLPDiscriminator((1, 8, 8), 4),
        lambda: (images(5, 1, 8, 8),),
        lambda: (latent.MLPDiscriminator(), (images(8192, 1, 28, 28),)),
        conv_blocks=False,
    ),
    Entry(
        "began_discriminator",
        lambda: latent.BEGANDiscriminator(3, 4, 16, 3),
        lambda: (images(2, 3, 16, 16),),
        lambda: (latent.BEGANDiscriminator(64), (images(2, 3, 64, 64),)),
        conv_blocks=False,
    ),
    Entry(
        "adversarial_autoencoder",
        lambda: latent.AAE((1, 8, 8), 8, 3),
        lambda: (images(5, 1, 8, 8),),
        lambda: (latent.AAE(), (images(2048, 1, 32, 32),)),
        conv_blocks=False,
    ),
    Entry(
        "vaegan",
        lambda: latent.VAEGAN(4, 2, 16),
        lambda: (images(4, 3, 16, 16),),
        lambda: (latent.VAEGAN(), (images(16, 3, 32, 32),)),
        conv_blocks=True,
    ),
    Entry(
        "vaegan_discriminator",
        lambda: latent.VAEGANDiscriminator(2, size=16),
        lambda: (images(4, 3, 16, 16),),
        lambda: (latent.VAEGANDiscriminator(), (images(16, 3, 32, 32),)),
        conv_blocks=True,
    ),
    Entry(
        "ali_discriminator",
        lambda: latent.ALIDiscriminator(4, 3),
        lambda: (images(4, 3, 32, 32), noise(4, 4, 1, 1)),
        lambda: (latent.ALIDiscriminator(), (images(128, 3, 32, 32), noise(128, 64, 1, 1))),
        conv_blocks=True,
    ),
    Entry(
        "progressive_generator",
        lambda: progressive.ProgressiveGenerator(6, 8, (1, 1 / 2, 1 / 4), depth=2, alpha=0.3),
        lambda: (noise(2, 6, 1, 1),),
        lambda: (progressive.ProgressiveGenerator(128, 128, depth=4, alpha=0.5), (noise(4, 128, 1, 1),)),
        conv_blocks=False,
    ),
    Entry(
        "progressive_critic",
        lambda: progressive.ProgressiveCritic(8, (1, 1 / 2, 1 / 4), depth=2, alpha=0.3),
        lambda: (images(3, 3, 16, 16),),
        lambda: (progressive.ProgressiveCritic(128, depth=4, alpha=0.5), (images(4, 3, 64, 64),)),
        conv_blocks=False,
    ),
    Entry(
        "style_generator",
        lambda: progressive.StyledGenerator(6, (6, 4), 2),
        lambda: (noise(2, 6),),
        lambda: (progressive.StyledGenerator(256, (256, 256, 256, 128)), (noise(8, 256),)),
        conv_blocks=False,
    ),
    Entry(
        "fastgan_generator",
        lambda: progressive.FastGANGenerator(2, 6),
        lambda: (noise(3, 6),),
        lambda: (progressive.FastGANGenerator(), (noise(8, 100),)),
        conv_blocks=False,
    ),
    Entry(
        "fastgan_discriminator",
        lambda: progressive.FastGANDiscriminator(4),
        lambda: (images(3, 3, 32, 32),),
        lambda: (progressive.FastGANDiscriminator(), (images(16, 3, 32, 32),)),
        conv_blocks=True,
    ),
)
