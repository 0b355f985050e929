"""ResNet GANs in the styles of SNGAN and WGAN-GP: pre-activation, both kinds of spectral norm, sum pooling."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import init
from torch.nn.utils.parametrizations import spectral_norm


def _upsample(x):
    h, w = x.size()[2:]
    return F.interpolate(x, size=(h * 2, w * 2), mode="bilinear", align_corners=False)


class GenBlock(nn.Module):
    def __init__(self, in_ch, out_ch, h_ch=None, ksize=3, pad=1, activation=F.relu, upsample=False):
        super(GenBlock, self).__init__()
        self.activation = activation
        self.upsample = upsample
        self.learnable_sc = in_ch != out_ch or upsample
        if h_ch is None:
            h_ch = out_ch
        self.b1 = nn.BatchNorm2d(in_ch)
        self.c1 = nn.Conv2d(in_ch, h_ch, ksize, 1, pad)
        self.b2 = nn.BatchNorm2d(h_ch)
        self.c2 = nn.Conv2d(h_ch, out_ch, ksize, 1, pad)
        if self.learnable_sc:
            self.c_sc = nn.Conv2d(in_ch, out_ch, 1)
        self._initialize()

    def _initialize(self):
        init.xavier_uniform_(self.c1.weight, gain=np.sqrt(2))
        init.xavier_uniform_(self.c2.weight, gain=np.sqrt(2))
        if self.learnable_sc:
            init.xavier_uniform_(self.c_sc.weight)

    def shortcut(self, x):
        if self.learnable_sc:
            h = _upsample(x) if self.upsample else x
            return self.c_sc(h)
        return x

    def residual(self, x):
        h = self.activation(self.b1(x))
        if self.upsample:
            h = _upsample(h)
        h = self.activation(self.b2(self.c1(h)))
        return self.c2(h)

    def forward(self, x):
        return self.residual(x) + self.shortcut(x)


class SNGANGenerator(nn.Module):
    def __init__(self, num_features=64, dim_z=128, bottom_width=4, n_blocks=4):
        super(SNGANGenerator, self).__init__()
        self.dim_z = dim_z
        self.bottom_width = bottom_width
        self.n_blocks = n_blocks
        top = 2**n_blocks
        self.l1 = nn.Linear(dim_z, top * num_features * bottom_width**2)
        init.xavier_uniform_(self.l1.weight)
        for i in range(n_blocks):
            block = GenBlock(num_features * top // 2**i, num_features * top // 2 ** (i + 1), upsample=True)
            self.add_module(f"block{i + 2}", block)
        self.b_last = nn.BatchNorm2d(num_features)
        self.conv_last = nn.Conv2d(num_features, 3, 1, 1)

    def forward(self, z):
        h = self.l1(z).view(z.size(0), -1, self.bottom_width, self.bottom_width)
        for i in range(2, self.n_blocks + 2):
            h = getattr(self, f"block{i}")(h)
        h = F.relu(self.b_last(h))
        return torch.tanh(self.conv_last(h))


class DisBlock(nn.Module):
    def __init__(self, in_ch, out_ch, activation=F.relu, downsample=False, first=False):
        super(DisBlock, self).__init__()
        self.activation = activation
        self.downsample = downsample
        self.first = first
        self.learnable_sc = (in_ch != out_ch) or downsample
        self.c1 = spectral_norm(nn.Conv2d(in_ch, out_ch, 3, 1, 1))
        self.c2 = spectral_norm(nn.Conv2d(out_ch, out_ch, 3, 1, 1))
        if self.learnable_sc:
            self.c_sc = spectral_norm(nn.Conv2d(in_ch, out_ch, 1, 1, 0))

    def shortcut(self, x):
        if self.first:
            return self.c_sc(F.avg_pool2d(x, 2))
        if self.learnable_sc:
            x = self.c_sc(x)
            if self.downsample:
                x = F.avg_pool2d(x, 2)
        return x

    def residual(self, x):
        h = x if self.first else self.activation(x)
        h = self.activation(self.c1(h))
        h = self.c2(h)
        if self.downsample:
            h = F.avg_pool2d(h, 2)
        return h

    def forward(self, x):
        return self.residual(x) + self.shortcut(x)


class SNGANDiscriminator(nn.Module):
    """Sum pooling, and a projection on the label's embedding if there are labels."""

    def __init__(self, num_features=64, num_classes=0, n_blocks=4):
        super(SNGANDiscriminator, self).__init__()
        self.n_blocks = n_blocks
        self.block1 = DisBlock(3, num_features, downsample=True, first=True)
        ch = num_features
        for i in range(2, n_blocks + 1):
            setattr(self, f"block{i}", DisBlock(ch, ch * 2, downsample=True))
            ch *= 2
        self.l_last = spectral_norm(nn.Linear(ch, 1))
        if num_classes > 0:
            self.l_y = spectral_norm(nn.Embedding(num_classes, ch))

    def forward(self, x, y=None):
        h = x
        for i in range(1, self.n_blocks + 1):
            h = getattr(self, f"block{i}")(h)
        h = F.relu(h)
        h = torch.sum(h, dim=(2, 3))
        output = self.l_last(h)
        if y is not None:
            output += torch.sum(self.l_y(y) * h, dim=1, keepdim=True)
        return output


class PlainSNDiscriminator(nn.Module):
    """No residuals; the hook-based spectral norm; alternating kernel sizes 3 and 4."""

    def __init__(self, nf=64, image_size=32):
        super(PlainSNDiscriminator, self).__init__()
        SN = nn.utils.spectral_norm
        self.conv1 = SN(nn.Conv2d(3, nf, 3, stride=1, padding=1))
        self.conv2 = SN(nn.Conv2d(nf, nf, 4, stride=2, padding=1))
        self.conv3 = SN(nn.Conv2d(nf, nf * 2, 3, stride=1, padding=1))
        self.conv4 = SN(nn.Conv2d(nf * 2, nf * 2, 4, stride=2, padding=1))
        self.conv5 = SN(nn.Conv2d(nf * 2, nf * 4, 3, stride=1, padding=1))
        self.conv6 = SN(nn.Conv2d(nf * 4, nf * 4, 4, stride=2, padding=1))
        self.conv7 = SN(nn.Conv2d(nf * 4, nf * 8, 3, stride=1, padding=1))
        self.fc = SN(nn.Linear((image_size // 8) ** 2 * nf * 8, 1))

    def forward(self, x):
        leak = 0.1
        m = nn.LeakyReLU(leak)(self.conv1(x))
        m = nn.LeakyReLU(leak)(self.conv2(m))
        m = nn.LeakyReLU(leak)(self.conv3(m))
        m = nn.LeakyReLU(leak)(self.conv4(m))
        m = nn.LeakyReLU(leak)(self.conv5(m))
        m = nn.LeakyReLU(leak)(self.conv6(m))
        m = nn.LeakyReLU(leak)(self.conv7(m))
        return self.fc(m.view(m.size(0), -1))


class SameConv2d(nn.Module):
    def __init__(self, input_dim, output_dim, kernel_size, he_init=True, stride=1, bias=True):
        super(SameConv2d, self).__init__()
        self.he_init = he_init
        self.padding = int((kernel_size - 1) / 2)
        self.conv = nn.Conv2d(input_dim, output_dim, kernel_size, stride=stride, padding=self.padding, bias=bias)

    def forward(self, input):
        output = self.conv(input)
        return output


class ConvMeanPool(nn.Module):
    """A convolution and 2x2 mean pooling by slices."""

    def __init__(self, input_dim, output_dim, kernel_size, he_init=True):
        super(ConvMeanPool, self).__init__()
        self.conv = SameConv2d(input_dim, output_dim, kernel_size, he_init=he_init)

    def forward(self, input):
        output = self.conv(input)
        rows = output[:, :, ::2, ::2] + output[:, :, 1::2, ::2] + output[:, :, ::2, 1::2] + output[:, :, 1::2, 1::2]
        return rows / 4


class MeanPoolConv(nn.Module):
    def __init__(self, input_dim, output_dim, kernel_size, he_init=True):
        super(MeanPoolConv, self).__init__()
        self.conv = SameConv2d(input_dim, output_dim, kernel_size, he_init=he_init)

    def forward(self, input):
        output = input
        output = sum([output[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]) / 4
        return self.conv(output)


class DepthToSpace(nn.Module):
    def __init__(self, block_size):
        super(DepthToSpace, self).__init__()
        self.block_size = block_size

    def forward(self, input):
        b, c, h, w = input.shape
        s = self.block_size
        output = input.permute(0, 2, 3, 1).reshape(b, h, w, s, s, c // s**2)
        return output.permute(0, 5, 1, 3, 2, 4).reshape(b, c // s**2, h * s, w * s)


class UpSampleConv(nn.Module):
    """Nearest-neighbor upsampling by repeated channels and a pixel shuffle."""

    def __init__(self, input_dim, output_dim, kernel_size, he_init=True, bias=True):
        super(UpSampleConv, self).__init__()
        self.conv = SameConv2d(input_dim, output_dim, kernel_size, he_init=he_init, bias=bias)
        self.depth_to_space = DepthToSpace(2)

    def forward(self, input):
        output = torch.cat((input, input, input, input), 1)
        output = self.depth_to_space(output)
        return self.conv(output)


class ResidualBlock(nn.Module):
    """Batch norm when upsampling, layer norm over all features when downsampling."""

    def __init__(self, input_dim, output_dim, kernel_size, resample=None, hw=64):
        super(ResidualBlock, self).__init__()
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        if resample == "down":
            self.bn1 = nn.LayerNorm([input_dim, hw, hw])
            self.bn2 = nn.LayerNorm([input_dim, hw, hw])
            self.conv_shortcut = MeanPoolConv(input_dim, output_dim, kernel_size=1, he_init=False)
            self.conv_1 = SameConv2d(input_dim, input_dim, kernel_size=kernel_size, bias=False)
            self.conv_2 = ConvMeanPool(input_dim, output_dim, kernel_size=kernel_size)
        elif resample == "up":
            self.bn1 = nn.BatchNorm2d(input_dim)
            self.bn2 = nn.BatchNorm2d(output_dim)
            self.conv_shortcut = UpSampleConv(input_dim, output_dim, kernel_size=1, he_init=False)
            self.conv_1 = UpSampleConv(input_dim, output_dim, kernel_size=kernel_size, bias=False)
            self.conv_2 = SameConv2d(output_dim, output_dim, kernel_size=kernel_size)
        else:
            raise Exception("invalid resample value")

    def forward(self, input):
        shortcut = self.conv_shortcut(input)
        output = input
        output = self.bn1(output)
        output = self.relu1(output)
        output = self.conv_1(output)
        output = self.bn2(output)
        output = self.relu2(output)
        output = self.conv_2(output)
        return shortcut + output


def he_uniform(m):
    if isinstance(m, SameConv2d) and m.conv.weight is not None:
        if m.he_init:
            init.kaiming_uniform_(m.conv.weight)
        else:
            init.xavier_uniform_(m.conv.weight)
        if m.conv.bias is not None:
            init.constant_(m.conv.bias, 0.0)
    if isinstance(m, nn.Linear):
        init.xavier_uniform_(m.weight)


class WGANGPGenerator(nn.Module):
    def __init__(self, dim=64, output_dim=64 * 64 * 3):
        super(WGANGPGenerator, self).__init__()
        self.dim = dim
        self.size = int(np.sqrt(output_dim // 3))
        self.ssize = self.size // 8
        self.ln1 = nn.Linear(128, self.ssize * self.ssize * 4 * dim)
        self.rb1 = ResidualBlock(4 * dim, 4 * dim, 3, resample="up")
        self.rb2 = ResidualBlock(4 * dim, 2 * dim, 3, resample="up")
        self.rb3 = ResidualBlock(2 * dim, 1 * dim, 3, resample="up")
        self.bn = nn.BatchNorm2d(dim)
        self.conv1 = SameConv2d(dim, 3, 3)
        self.relu = nn.ReLU()
        self.tanh = nn.Tanh()

    def forward(self, input):
        output = self.ln1(input.contiguous())
        output = output.view(-1, 4 * self.dim, self.ssize, self.ssize)
        output = self.rb1(output)
        output = self.rb2(output)
        output = self.rb3(output)
        output = self.bn(output)
        output = self.relu(output)
        output = self.conv1(output)
        output = self.tanh(output)
        return output


class WGANGPCritic(nn.Module):
    def __init__(self, dim=64, size=64):
        super(WGANGPCritic, self).__init__()
        self.dim = dim
        self.size = size
        self.ssize = size // 8
        self.conv1 = SameConv2d(3, dim, 3, he_init=False)
        self.rb1 = ResidualBlock(dim, 2 * dim, 3, resample="down", hw=size)
        self.rb2 = ResidualBlock(2 * dim, 4 * dim, 3, resample="down", hw=size // 2)
        self.rb3 = ResidualBlock(4 * dim, 4 * dim, 3, resample="down", hw=size // 4)
        self.ln1 = nn.Linear(self.ssize * self.ssize * 4 * dim, 1)

    def forward(self, input):
        output = input.contiguous()
        output = output.view(-1, 3, self.size, self.size)
        output = self.conv1(output)
        output = self.rb1(output)
        output = self.rb2(output)
        output = self.rb3(output)
        output = output.view(-1, self.ssize * self.ssize * 4 * self.dim)
        output = self.ln1(output)
        output = output.view(-1)
        return output


class InstanceNormCritic(nn.Module):
    """A critic with instance norm, which keeps samples independent."""

    def __init__(self, channels=3, dim=256):
        super().__init__()
        self.main_module = nn.Sequential(
            nn.Conv2d(in_channels=channels, out_channels=dim, kernel_size=4, stride=2, padding=1),
            nn.InstanceNorm2d(dim, affine=True),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(in_channels=dim, out_channels=dim * 2, kernel_size=4, stride=2, padding=1),
            nn.InstanceNorm2d(dim * 2, affine=True),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(in_channels=dim * 2, out_channels=dim * 4, kernel_size=4, stride=2, padding=1),
            nn.InstanceNorm2d(dim * 4, affine=True),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.output = nn.Sequential(nn.Conv2d(dim * 4, out_channels=1, kernel_size=4, stride=1, padding=0))

    def forward(self, x):
        x = self.main_module(x)
        return self.output(x)

    def feature_extraction(self, x):
        x = self.main_module(x)
        return x.view(x.size(0), -1)
