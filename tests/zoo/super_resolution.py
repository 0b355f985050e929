"""SRGAN and ESRGAN: PReLU, PixelShuffle, residual and dense blocks, a VGG-style critic."""

import math

import torch
import torch.nn as nn


class ResidualBlock(nn.Module):
    def __init__(self, in_features):
        super(ResidualBlock, self).__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(in_features, in_features, kernel_size=3, stride=1, padding=1),
            nn.BatchNorm2d(in_features, 0.8),
            nn.PReLU(),
            nn.Conv2d(in_features, in_features, kernel_size=3, stride=1, padding=1),
            nn.BatchNorm2d(in_features, 0.8),
        )

    def forward(self, x):
        return x + self.conv_block(x)


class GeneratorResNet(nn.Module):
    def __init__(self, in_channels=3, out_channels=3, nf=64, n_residual_blocks=16):
        super(GeneratorResNet, self).__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, nf, kernel_size=9, stride=1, padding=4), nn.PReLU())

        res_blocks = []
        for _ in range(n_residual_blocks):
            res_blocks.append(ResidualBlock(nf))
        self.res_blocks = nn.Sequential(*res_blocks)

        self.conv2 = nn.Sequential(nn.Conv2d(nf, nf, kernel_size=3, stride=1, padding=1), nn.BatchNorm2d(nf, 0.8))

        upsampling = []
        for _ in range(2):
            upsampling += [
                nn.Conv2d(nf, nf * 4, 3, 1, 1),
                nn.BatchNorm2d(nf * 4),
                nn.PixelShuffle(upscale_factor=2),
                nn.PReLU(),
            ]
        self.upsampling = nn.Sequential(*upsampling)
        self.conv3 = nn.Sequential(nn.Conv2d(nf, out_channels, kernel_size=9, stride=1, padding=4), nn.Tanh())

    def forward(self, x):
        out1 = self.conv1(x)
        out = self.res_blocks(out1)
        out2 = self.conv2(out)
        out = torch.add(out1, out2)
        out = self.upsampling(out)
        out = self.conv3(out)
        return out


class NumberedBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        residual = self.conv1(x)
        residual = self.bn1(residual)
        residual = self.prelu(residual)
        residual = self.conv2(residual)
        residual = self.bn2(residual)
        return x + residual


class NumberedGenerator(nn.Module):
    """An SRGAN generator whose forward calls block1 to block8 by name."""

    def __init__(self, scale_factor, nf=64):
        super().__init__()
        upsample_block_num = int(math.log(scale_factor, 2))
        self.block1 = nn.Sequential(nn.Conv2d(3, nf, kernel_size=9, padding=4), nn.PReLU())
        self.block2 = NumberedBlock(nf)
        self.block3 = NumberedBlock(nf)
        self.block4 = NumberedBlock(nf)
        self.block5 = nn.Sequential(nn.Conv2d(nf, nf, kernel_size=3, padding=1), nn.BatchNorm2d(nf))
        block6 = []
        for _ in range(upsample_block_num):
            block6.append(nn.Sequential(nn.Conv2d(nf, nf * 4, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()))
        block6.append(nn.Conv2d(nf, 3, kernel_size=9, padding=4))
        self.block6 = nn.Sequential(*block6)

    def forward(self, x):
        block1 = self.block1(x)
        block2 = self.block2(block1)
        block3 = self.block3(block2)
        block4 = self.block4(block3)
        block5 = self.block5(block4)
        block6 = self.block6(block1 + block5)
        return (torch.tanh(block6) + 1) / 2


class Discriminator(nn.Module):
    """Pairs of convolutions, of which the second halves the image; a list gives the channels."""

    def __init__(self, in_channels=3, channels=(64, 128, 256, 512)):
        super(Discriminator, self).__init__()

        def discriminator_block(in_filters, out_filters, first_block=False):
            layers = []
            layers.append(nn.Conv2d(in_filters, out_filters, kernel_size=3, stride=1, padding=1))
            if not first_block:
                layers.append(nn.BatchNorm2d(out_filters))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            layers.append(nn.Conv2d(out_filters, out_filters, kernel_size=3, stride=2, padding=1))
            layers.append(nn.BatchNorm2d(out_filters))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            return layers

        layers = []
        in_filters = in_channels
        for i, out_filters in enumerate(channels):
            layers.extend(discriminator_block(in_filters, out_filters, first_block=(i == 0)))
            in_filters = out_filters
        self.model = nn.Sequential(*layers)
        self.tail = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_filters, in_filters * 2, kernel_size=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(in_filters * 2, 1, kernel_size=1),
        )

    def forward(self, img):
        batch_size = img.size(0)
        return torch.sigmoid(self.tail(self.model(img)).view(batch_size))


class DenseResidualBlock(nn.Module):
    def __init__(self, filters, res_scale=0.2):
        super(DenseResidualBlock, self).__init__()
        self.res_scale = res_scale

        def block(in_features, non_linearity=True):
            layers = [nn.Conv2d(in_features, filters, 3, 1, 1, bias=True)]
            if non_linearity:
                layers += [nn.LeakyReLU()]
            return nn.Sequential(*layers)

        self.b1 = block(in_features=1 * filters)
        self.b2 = block(in_features=2 * filters)
        self.b3 = block(in_features=3 * filters, non_linearity=False)
        self.blocks = [self.b1, self.b2, self.b3]

    def forward(self, x):
        inputs = x
        for block in self.blocks:
            out = block(inputs)
            inputs = torch.cat([inputs, out], 1)
        return out.mul(self.res_scale) + x


class ESRGANGenerator(nn.Module):
    """Has no norms; every block also keeps its parts in a plain list."""

    def __init__(self, channels=3, filters=64, num_res_blocks=4):
        super(ESRGANGenerator, self).__init__()
        self.conv1 = nn.Conv2d(channels, filters, kernel_size=3, stride=1, padding=1)
        self.res_blocks = nn.Sequential(*[DenseResidualBlock(filters) for _ in range(num_res_blocks)])
        self.conv2 = nn.Conv2d(filters, filters, kernel_size=3, stride=1, padding=1)
        self.upsampling = nn.Sequential(
            nn.Conv2d(filters, filters * 4, kernel_size=3, stride=1, padding=1),
            nn.LeakyReLU(),
            nn.PixelShuffle(upscale_factor=2),
        )
        self.conv3 = nn.Sequential(
            nn.Conv2d(filters, filters, kernel_size=3, stride=1, padding=1),
            nn.LeakyReLU(),
            nn.Conv2d(filters, channels, kernel_size=3, stride=1, padding=1),
        )

    def forward(self, x):
        out1 = self.conv1(x)
        out = self.res_blocks(out1)
        out2 = self.conv2(out)
        out = torch.add(out1, out2)
        out = self.upsampling(out)
        out = self.conv3(out)
        return out
