"""Progressive GAN, StyleGAN and FastGAN: equalized learning rates, attributes that forward reads, noise, GLU, gates."""

from math import sqrt

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm


class WSConv2d(nn.Module):
    """Scales the weight by its fan-in at every call, and adds the bias separately."""

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, padding=1, gain=2):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.scale = (gain / (in_channels * (kernel_size**2))) ** 0.5
        self.bias = self.conv.bias
        self.conv.bias = None
        nn.init.normal_(self.conv.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x):
        return self.conv(x * self.scale) + self.bias.view(1, self.bias.shape[0], 1, 1)


class PixelNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.epsilon = 1e-8

    def forward(self, x):
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + self.epsilon)


class ConvBlock(nn.Module):
    def __init__(self, in_channels, out_channels, use_pixelnorm=True):
        super().__init__()
        self.use_pn = use_pixelnorm
        self.conv1 = WSConv2d(in_channels, out_channels)
        self.conv2 = WSConv2d(out_channels, out_channels)
        self.leaky = nn.LeakyReLU(0.2)
        self.pn = PixelNorm()

    def forward(self, x):
        x = self.leaky(self.conv1(x))
        x = self.pn(x) if self.use_pn else x
        x = self.leaky(self.conv2(x))
        x = self.pn(x) if self.use_pn else x
        return x


class ProgressiveGenerator(nn.Module):
    """The training loop sets the depth and the fade-in factor of the last step as attributes."""

    def __init__(self, z_dim=512, in_channels=512, factors=(1, 1, 1, 1, 1 / 2), img_channels=3, depth=0, alpha=1.0):
        super().__init__()
        self.depth = depth
        self.alpha = alpha
        self.initial = nn.Sequential(
            PixelNorm(),
            nn.ConvTranspose2d(z_dim, in_channels, 4, 1, 0),
            nn.LeakyReLU(0.2),
            WSConv2d(in_channels, in_channels),
            nn.LeakyReLU(0.2),
            PixelNorm(),
        )
        self.initial_rgb = WSConv2d(in_channels, img_channels, kernel_size=1, stride=1, padding=0)
        self.prog_blocks, self.rgb_layers = nn.ModuleList([]), nn.ModuleList([self.initial_rgb])
        for i in range(len(factors) - 1):
            conv_in_c = int(in_channels * factors[i])
            conv_out_c = int(in_channels * factors[i + 1])
            self.prog_blocks.append(ConvBlock(conv_in_c, conv_out_c))
            self.rgb_layers.append(WSConv2d(conv_out_c, img_channels, kernel_size=1, stride=1, padding=0))

    def fade_in(self, upscaled, generated):
        return torch.tanh(self.alpha * generated + (1 - self.alpha) * upscaled)

    def forward(self, x):
        out = self.initial(x)
        if self.depth == 0:
            return self.initial_rgb(out)

        for step in range(self.depth):
            upscaled = F.interpolate(out, scale_factor=2, mode="nearest")
            out = self.prog_blocks[step](upscaled)

        final_upscaled = self.rgb_layers[self.depth - 1](upscaled)
        final_out = self.rgb_layers[self.depth](out)
        return self.fade_in(final_upscaled, final_out)


class ProgressiveCritic(nn.Module):
    """Starts at the block for the current depth; minibatch standard deviation is an extra channel."""

    def __init__(self, in_channels=512, factors=(1, 1, 1, 1, 1 / 2), img_channels=3, depth=0, alpha=1.0):
        super().__init__()
        self.depth = depth
        self.alpha = alpha
        self.prog_blocks, self.rgb_layers = nn.ModuleList([]), nn.ModuleList([])
        self.leaky = nn.LeakyReLU(0.2)
        for i in range(len(factors) - 1, 0, -1):
            conv_in = int(in_channels * factors[i])
            conv_out = int(in_channels * factors[i - 1])
            self.prog_blocks.append(ConvBlock(conv_in, conv_out, use_pixelnorm=False))
            self.rgb_layers.append(WSConv2d(img_channels, conv_in, kernel_size=1, stride=1, padding=0))
        self.initial_rgb = WSConv2d(img_channels, in_channels, kernel_size=1, stride=1, padding=0)
        self.rgb_layers.append(self.initial_rgb)
        self.avg_pool = nn.AvgPool2d(kernel_size=2, stride=2)
        self.final_block = nn.Sequential(
            WSConv2d(in_channels + 1, in_channels, kernel_size=3, padding=1),
            nn.LeakyReLU(0.2),
            WSConv2d(in_channels, in_channels, kernel_size=4, padding=0, stride=1),
            nn.LeakyReLU(0.2),
            WSConv2d(in_channels, 1, kernel_size=1, padding=0, stride=1),
        )

    def minibatch_std(self, x):
        batch_statistics = torch.std(x, dim=0).mean().repeat(x.shape[0], 1, x.shape[2], x.shape[3])
        return torch.cat([x, batch_statistics], dim=1)

    def forward(self, x):
        cur_step = len(self.prog_blocks) - self.depth
        out = self.leaky(self.rgb_layers[cur_step](x))
        if self.depth > 0:
            downscaled = self.leaky(self.rgb_layers[cur_step + 1](self.avg_pool(x)))
            out = self.avg_pool(self.prog_blocks[cur_step](out))
            out = self.alpha * out + (1 - self.alpha) * downscaled
            for step in range(cur_step + 1, len(self.prog_blocks)):
                out = self.prog_blocks[step](out)
                out = self.avg_pool(out)
        out = self.minibatch_std(out)
        return self.final_block(out).view(out.shape[0], -1)


class EqualLR:
    """A forward pre-hook that computes weight from weight_orig, like torch.nn.utils.spectral_norm."""

    def __init__(self, name):
        self.name = name

    def compute_weight(self, module):
        weight = getattr(module, self.name + "_orig")
        fan_in = weight.data.size(1) * weight.data[0][0].numel()
        return weight * sqrt(2 / fan_in)

    @staticmethod
    def apply(module, name):
        fn = EqualLR(name)
        weight = getattr(module, name)
        del module._parameters[name]
        module.register_parameter(name + "_orig", nn.Parameter(weight.data))
        module.register_forward_pre_hook(fn)
        return fn

    def __call__(self, module, input):
        setattr(module, self.name, self.compute_weight(module))


def equal_lr(module, name="weight"):
    module.weight.data.normal_()
    if module.bias is not None:
        module.bias.data.zero_()
    EqualLR.apply(module, name)
    return module


class NoiseInjection(nn.Module):
    def __init__(self, channel):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, channel, 1, 1))

    def forward(self, image, noise):
        return image + self.weight * noise


class AdaptiveInstanceNorm(nn.Module):
    def __init__(self, in_channel, style_dim):
        super().__init__()
        self.norm = nn.InstanceNorm2d(in_channel)
        self.style = equal_lr(nn.Linear(style_dim, in_channel * 2))
        self.style.bias.data[:in_channel] = 1
        self.style.bias.data[in_channel:] = 0

    def forward(self, input, style):
        style = self.style(style).unsqueeze(2).unsqueeze(3)
        gamma, beta = style.chunk(2, 1)
        return gamma * self.norm(input) + beta


class StyledConvBlock(nn.Module):
    def __init__(self, in_channel, out_channel, style_dim=512, initial=False):
        super().__init__()
        if initial:
            self.input = nn.Parameter(torch.randn(1, in_channel, 4, 4))
        else:
            self.conv1 = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"), equal_lr(nn.Conv2d(in_channel, out_channel, 3, padding=1))
            )
        self.initial = initial
        self.noise1 = NoiseInjection(out_channel)
        self.adain1 = AdaptiveInstanceNorm(out_channel, style_dim)
        self.lrelu1 = nn.LeakyReLU(0.2)
        self.conv2 = equal_lr(nn.Conv2d(out_channel, out_channel, 3, padding=1))
        self.noise2 = NoiseInjection(out_channel)
        self.adain2 = AdaptiveInstanceNorm(out_channel, style_dim)
        self.lrelu2 = nn.LeakyReLU(0.2)

    def forward(self, input, style):
        out = self.input.repeat(style.size(0), 1, 1, 1) if self.initial else self.conv1(input)
        out = self.noise1(out, torch.randn(out.size(0), 1, *out.shape[2:], dtype=out.dtype, device=out.device))
        out = self.adain1(self.lrelu1(out), style)
        out = self.conv2(out)
        out = self.noise2(out, torch.randn_like(out[:, :1]))
        out = self.adain2(self.lrelu2(out), style)
        return out


class StyledGenerator(nn.Module):
    def __init__(self, code_dim=512, channels=(512, 512, 512, 256), n_mlp=8):
        super().__init__()
        layers = [PixelNorm()]
        for _ in range(n_mlp):
            layers.append(equal_lr(nn.Linear(code_dim, code_dim)))
            layers.append(nn.LeakyReLU(0.2))
        self.style = nn.Sequential(*layers)
        self.progression = nn.ModuleList([StyledConvBlock(channels[0], channels[0], code_dim, initial=True)])
        for i in range(1, len(channels)):
            self.progression.append(StyledConvBlock(channels[i - 1], channels[i], code_dim))
        self.to_rgb = nn.ModuleList([equal_lr(nn.Conv2d(channel, 3, 1)) for channel in channels])

    def forward(self, input):
        style = self.style(input)
        out = image = None
        for i, (conv, to_rgb) in enumerate(zip(self.progression, self.to_rgb)):
            out = conv(out, style)
            skip = to_rgb(out)
            image = skip if i == 0 else F.interpolate(image, scale_factor=2, mode="bilinear") + skip
        return image


def conv2d(*args, **kwargs):
    return spectral_norm(nn.Conv2d(*args, **kwargs))


def conv_transpose2d(*args, **kwargs):
    return spectral_norm(nn.ConvTranspose2d(*args, **kwargs))


class GLU(nn.Module):
    def forward(self, x):
        nc = x.size(1)
        assert nc % 2 == 0, "channels don't divide by 2"
        nc = nc // 2
        return x[:, :nc] * torch.sigmoid(x[:, nc:])


class NoiseLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=True)

    def forward(self, feat, noise=None):
        if noise is None:
            batch, _, height, width = feat.shape
            noise = torch.randn(batch, 1, height, width, device=feat.device).to(feat.dtype)
        return feat + self.weight * noise


class Swish(nn.Module):
    def forward(self, feat):
        return feat * torch.sigmoid(feat)


class SEBlock(nn.Module):
    """Gates high-resolution features by low-resolution ones."""

    def __init__(self, ch_in, ch_out):
        super().__init__()
        self.main = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            conv2d(ch_in, ch_out, 4, 1, 0, bias=False),
            Swish(),
            conv2d(ch_out, ch_out, 1, 1, 0, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, feat_small, feat_big):
        return feat_big * self.main(feat_small)


def up_block(in_planes, out_planes):
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        conv2d(in_planes, out_planes * 2, 3, 1, 1, bias=False),
        nn.BatchNorm2d(out_planes * 2),
        GLU(),
    )


def up_block_comp(in_planes, out_planes):
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        conv2d(in_planes, out_planes * 2, 3, 1, 1, bias=False),
        NoiseLayer(),
        nn.BatchNorm2d(out_planes * 2),
        GLU(),
        conv2d(out_planes, out_planes * 2, 3, 1, 1, bias=False),
        NoiseLayer(),
        nn.BatchNorm2d(out_planes * 2),
        GLU(),
    )


class FastGANGenerator(nn.Module):
    """Names features by their size, and returns a smaller image with the large one."""

    def __init__(self, ngf=64, nz=100):
        super().__init__()
        self.init = nn.Sequential(conv_transpose2d(nz, ngf * 16, 4, 1, 0, bias=False), nn.BatchNorm2d(ngf * 16), GLU())
        self.feat_8 = up_block_comp(ngf * 8, ngf * 4)
        self.feat_16 = up_block(ngf * 4, ngf * 2)
        self.feat_32 = up_block_comp(ngf * 2, ngf)
        self.se_32 = SEBlock(ngf * 8, ngf)
        self.to_16 = conv2d(ngf * 2, 3, 1, 1, 0, bias=False)
        self.to_big = conv2d(ngf, 3, 3, 1, 1, bias=False)

    def forward(self, input):
        feat_4 = self.init(input.view(input.size(0), -1, 1, 1))
        feat_8 = self.feat_8(feat_4)
        feat_16 = self.feat_16(feat_8)
        feat_32 = self.se_32(feat_4, self.feat_32(feat_16))
        return [torch.tanh(self.to_big(feat_32)), self.to_16(feat_16)]


class DownBlockComp(nn.Module):
    """The mean of two downsampling paths."""

    def __init__(self, in_planes, out_planes):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(in_planes, out_planes, 4, 2, 1, bias=False),
            nn.BatchNorm2d(out_planes),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(out_planes, out_planes, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_planes),
            nn.LeakyReLU(0.2),
        )
        self.direct = nn.Sequential(
            nn.AvgPool2d(2, 2),
            nn.Conv2d(in_planes, out_planes, 1, 1, 0, bias=False),
            nn.BatchNorm2d(out_planes),
            nn.LeakyReLU(0.2),
        )

    def forward(self, feat):
        return (self.main(feat) + self.direct(feat)) / 2


class FastGANDiscriminator(nn.Module):
    """Given label="real", also returns the images that a decoder makes of its features."""

    def __init__(self, ndf=64):
        super().__init__()
        self.down_from_big = nn.Sequential(nn.Conv2d(3, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True))
        self.down_8 = DownBlockComp(ndf, ndf * 2)
        self.down_4 = DownBlockComp(ndf * 2, ndf * 4)
        self.rf_big = nn.Sequential(
            nn.Conv2d(ndf * 4, ndf * 8, 1, 1, 0, bias=False),
            nn.BatchNorm2d(ndf * 8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False),
        )
        self.decoder = nn.Sequential(nn.AdaptiveAvgPool2d(4), up_block(ndf * 4, ndf), up_block(ndf, ndf // 2))
        self.to_image = nn.Sequential(nn.Conv2d(ndf // 2, 3, 3, 1, 1, bias=False), nn.Tanh())

    def forward(self, imgs, label="real"):
        feat = self.down_4(self.down_8(self.down_from_big(imgs)))
        rf = self.rf_big(feat).view(-1)
        if label == "real":
            return rf, self.to_image(self.decoder(feat))
        return rf
