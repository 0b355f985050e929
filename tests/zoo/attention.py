"""SAGAN and BigGAN: self-attention, spectral norm in every layer, class-conditional batch norm."""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class SelfAttention(nn.Module):
    def __init__(self, in_dim):
        super(SelfAttention, self).__init__()
        self.query_conv = nn.Conv2d(in_dim, in_dim // 8, kernel_size=1)
        self.key_conv = nn.Conv2d(in_dim, in_dim // 8, kernel_size=1)
        self.value_conv = nn.Conv2d(in_dim, in_dim, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x):
        B, C, H, W = x.size()
        query = self.query_conv(x).view(B, -1, H * W).permute(0, 2, 1)
        key = self.key_conv(x).view(B, -1, H * W)
        attention = self.softmax(torch.bmm(query, key))
        value = self.value_conv(x).view(B, -1, H * W)
        out = torch.bmm(value, attention.permute(0, 2, 1)).view(B, C, H, W)
        return self.gamma * out + x, attention


class SAGANGenerator(nn.Module):
    """Has a fourth layer for 64-pixel images, and returns the attention maps with the images."""

    def __init__(self, image_size=64, z_dim=100, conv_dim=64):
        super(SAGANGenerator, self).__init__()
        self.imsize = image_size

        def layer(dim_in, dim_out, *geometry):
            layers = [spectral_norm(nn.ConvTranspose2d(dim_in, dim_out, *geometry))]
            layers += [nn.BatchNorm2d(dim_out), nn.ReLU()]
            return nn.Sequential(*layers)

        self.l1 = layer(z_dim, conv_dim * 8, 4)
        self.l2 = layer(conv_dim * 8, conv_dim * 4, 4, 2, 1)
        self.l3 = layer(conv_dim * 4, conv_dim * 2, 4, 2, 1)
        self.attn = SelfAttention(conv_dim * 2)
        last_dim = conv_dim * 2
        if self.imsize == 64:
            self.l4 = layer(conv_dim * 2, conv_dim, 4, 2, 1)
            last_dim = conv_dim
        self.last = nn.Sequential(nn.ConvTranspose2d(last_dim, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z):
        z = z.view(z.size(0), z.size(1), 1, 1)
        out = self.l1(z)
        out = self.l2(out)
        out = self.l3(out)
        out, attention = self.attn(out)
        if self.imsize == 64:
            out = self.l4(out)
        return self.last(out), attention


class SAGANDiscriminator(nn.Module):
    def __init__(self, conv_dim=64):
        super(SAGANDiscriminator, self).__init__()
        self.l1 = nn.Sequential(spectral_norm(nn.Conv2d(3, conv_dim, 4, 2, 1)), nn.LeakyReLU(0.1))
        self.l2 = nn.Sequential(spectral_norm(nn.Conv2d(conv_dim, conv_dim * 2, 4, 2, 1)), nn.LeakyReLU(0.1))
        self.l3 = nn.Sequential(spectral_norm(nn.Conv2d(conv_dim * 2, conv_dim * 4, 4, 2, 1)), nn.LeakyReLU(0.1))
        self.attn = SelfAttention(conv_dim * 4)
        self.last = nn.Sequential(nn.Conv2d(conv_dim * 4, 1, 4))

    def forward(self, x):
        out = self.l1(x)
        out = self.l2(out)
        out = self.l3(out)
        out, attention = self.attn(out)
        out = self.last(out)
        return out.squeeze(), attention


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose scale and shift per class are an embedding."""

    def __init__(self, num_features, num_classes):
        super().__init__()
        self.num_features = num_features
        self.bn = nn.BatchNorm2d(num_features, affine=False)
        self.embed = nn.Embedding(num_classes, num_features * 2)
        self.embed.weight.data[:, :num_features].normal_(1, 0.02)
        self.embed.weight.data[:, num_features:].zero_()

    def forward(self, x, y):
        out = self.bn(x)
        gamma, beta = self.embed(y).chunk(2, 1)
        out = gamma.view(-1, self.num_features, 1, 1) * out + beta.view(-1, self.num_features, 1, 1)
        return out


class CBNGenBlock(nn.Module):
    def __init__(self, in_planes, out_planes, num_classes):
        super(CBNGenBlock, self).__init__()
        self.cond_bn1 = ConditionalBatchNorm2d(in_planes, num_classes)
        self.relu = nn.ReLU(inplace=True)
        self.snconv2d1 = spectral_norm(nn.Conv2d(in_planes, out_planes, kernel_size=3, stride=1, padding=1))
        self.cond_bn2 = ConditionalBatchNorm2d(out_planes, num_classes)
        self.snconv2d2 = spectral_norm(nn.Conv2d(out_planes, out_planes, kernel_size=3, stride=1, padding=1))
        self.snconv2d0 = spectral_norm(nn.Conv2d(in_planes, out_planes, kernel_size=1, stride=1, padding=0))

    def forward(self, x, labels):
        x0 = x
        x = self.cond_bn1(x, labels)
        x = self.relu(x)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.snconv2d1(x)
        x = self.cond_bn2(x, labels)
        x = self.relu(x)
        x = self.snconv2d2(x)

        x0 = F.interpolate(x0, scale_factor=2, mode="nearest")
        x0 = self.snconv2d0(x0)
        return x + x0


class CBNGenerator(nn.Module):
    def __init__(self, z_dim=128, g_conv_dim=64, num_classes=10):
        super(CBNGenerator, self).__init__()
        self.g_conv_dim = g_conv_dim
        self.snlinear0 = spectral_norm(nn.Linear(z_dim, g_conv_dim * 8 * 4 * 4))
        self.block1 = CBNGenBlock(g_conv_dim * 8, g_conv_dim * 4, num_classes)
        self.block2 = CBNGenBlock(g_conv_dim * 4, g_conv_dim * 2, num_classes)
        self.self_attn = SelfAttention(g_conv_dim * 2)
        self.block3 = CBNGenBlock(g_conv_dim * 2, g_conv_dim, num_classes)
        self.bn = nn.BatchNorm2d(g_conv_dim, eps=1e-5, momentum=0.0001, affine=True)
        self.relu = nn.ReLU(inplace=True)
        self.snconv2d1 = spectral_norm(nn.Conv2d(g_conv_dim, 3, kernel_size=3, stride=1, padding=1))
        self.tanh = nn.Tanh()

    def forward(self, z, labels):
        act0 = self.snlinear0(z)
        act0 = act0.view(-1, self.g_conv_dim * 8, 4, 4)
        act1 = self.block1(act0, labels)
        act2 = self.block2(act1, labels)
        act2, _ = self.self_attn(act2)
        act3 = self.block3(act2, labels)
        act = self.bn(act3)
        act = self.relu(act)
        act = self.snconv2d1(act)
        return self.tanh(act)


class FunctionalConditionalBatchNorm(nn.Module):
    """F.batch_norm on own buffers; linear layers compute scale and shift from the condition."""

    def __init__(self, output_size, input_size, which_linear, eps=1e-5, momentum=0.1):
        super().__init__()
        self.gain = which_linear(input_size, output_size)
        self.bias = which_linear(input_size, output_size)
        self.eps, self.momentum = eps, momentum
        self.register_buffer("stored_mean", torch.zeros(output_size))
        self.register_buffer("stored_var", torch.ones(output_size))

    def forward(self, x, y):
        gain = (1 + self.gain(y)).view(y.size(0), -1, 1, 1)
        bias = self.bias(y).view(y.size(0), -1, 1, 1)
        out = F.batch_norm(x, self.stored_mean, self.stored_var, None, None, self.training, self.momentum, self.eps)
        return out * gain + bias


class BigGANBlock(nn.Module):
    def __init__(self, in_channels, out_channels, which_conv, which_bn, activation, upsample):
        super().__init__()
        self.activation = activation
        self.upsample = upsample
        self.conv1, self.conv2 = which_conv(in_channels, out_channels), which_conv(out_channels, out_channels)
        self.conv_sc = which_conv(in_channels, out_channels, kernel_size=1, padding=0)
        self.bn1, self.bn2 = which_bn(in_channels), which_bn(out_channels)

    def forward(self, x, y):
        h = self.activation(self.bn1(x, y))
        h = self.upsample(h)
        x = self.upsample(x)
        h = self.conv1(h)
        h = self.activation(self.bn2(h, y))
        h = self.conv2(h)
        return h + self.conv_sc(x)


def sn_conv(in_channels, out_channels, kernel_size=3, padding=1):
    return spectral_norm(nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding))


def no_bias_linear(in_features, out_features):
    return spectral_norm(nn.Linear(in_features, out_features, bias=False))


class BigGANGenerator(nn.Module):
    """Layer types are partial functions. Each block gets a chunk of the noise and the label's embedding."""

    def __init__(self, ch=64, widths=(8, 4, 2, 1), dim_z=80, shared_dim=32, n_classes=10, bottom_width=4):
        super().__init__()
        self.bottom_width = bottom_width
        self.num_slots = len(widths)
        self.z_chunk_size = dim_z // self.num_slots
        self.activation = nn.ReLU(inplace=False)
        self.which_conv = sn_conv
        self.which_bn = functools.partial(
            FunctionalConditionalBatchNorm,
            input_size=shared_dim + self.z_chunk_size,
            which_linear=no_bias_linear,
            eps=1e-5,
        )
        self.shared = nn.Embedding(n_classes, shared_dim)
        self.linear = spectral_norm(nn.Linear(self.z_chunk_size, ch * widths[0] * bottom_width**2))
        self.blocks = []
        for w_in, w_out in itertools.pairwise(widths):
            self.blocks += [
                [
                    BigGANBlock(
                        in_channels=ch * w_in,
                        out_channels=ch * w_out,
                        which_conv=self.which_conv,
                        which_bn=self.which_bn,
                        activation=self.activation,
                        upsample=functools.partial(F.interpolate, scale_factor=2),
                    )
                ]
            ]
        self.blocks = nn.ModuleList([nn.ModuleList(block) for block in self.blocks])
        self.output_layer = nn.Sequential(nn.BatchNorm2d(ch * widths[-1]), self.activation, sn_conv(ch * widths[-1], 3))
        self.init_weights()

    def init_weights(self):
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
                nn.init.orthogonal_(module.weight)

    def forward(self, z, y):
        y = self.shared(y)
        zs = torch.split(z, self.z_chunk_size, 1)
        z = zs[0]
        ys = [torch.cat([y, item], 1) for item in zs[1:]]
        h = self.linear(z)
        h = h.view(h.size(0), -1, self.bottom_width, self.bottom_width)
        for index, blocklist in enumerate(self.blocks):
            for block in blocklist:
                h = block(h, ys[index])
        return torch.tanh(self.output_layer(h))
