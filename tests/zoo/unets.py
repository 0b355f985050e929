"""U-Nets with explicit steps, a context encoder, and SinGAN's generator of one scale."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class UNetDown(nn.Module):
    def __init__(self, in_size, out_size, normalize=True, dropout=0.0):
        super(UNetDown, self).__init__()
        layers = [nn.Conv2d(in_size, out_size, 4, 2, 1, bias=False)]
        if normalize:
            layers.append(nn.InstanceNorm2d(out_size))
        layers.append(nn.LeakyReLU(0.2))
        if dropout:
            layers.append(nn.Dropout(dropout))
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class UNetUp(nn.Module):
    def __init__(self, in_size, out_size, dropout=0.0):
        super(UNetUp, self).__init__()
        layers = [nn.ConvTranspose2d(in_size, out_size, 4, 2, 1, bias=False)]
        layers += [nn.InstanceNorm2d(out_size), nn.ReLU(inplace=True)]
        if dropout:
            layers += [nn.Dropout(dropout)]
        self.model = nn.Sequential(*layers)

    def forward(self, x, skip_input):
        x = self.model(x)
        x = torch.cat((x, skip_input), 1)
        return x


class GeneratorUNet(nn.Module):
    def __init__(self, in_channels=3, out_channels=3, nf=64):
        super(GeneratorUNet, self).__init__()
        self.down1 = UNetDown(in_channels, nf, normalize=False)
        self.down2 = UNetDown(nf, nf * 2)
        self.down3 = UNetDown(nf * 2, nf * 4, dropout=0.5)
        self.down4 = UNetDown(nf * 4, nf * 8, normalize=False, dropout=0.5)
        self.up1 = UNetUp(nf * 8, nf * 4, dropout=0.5)
        self.up2 = UNetUp(nf * 8, nf * 2)
        self.up3 = UNetUp(nf * 4, nf)
        self.up4 = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d((1, 0, 1, 0)),
            nn.Conv2d(nf * 2, out_channels, 4, padding=1),
            nn.Tanh(),
        )

    def forward(self, x):
        d1 = self.down1(x)
        d2 = self.down2(d1)
        d3 = self.down3(d2)
        d4 = self.down4(d3)
        u1 = self.up1(d4, d3)
        u2 = self.up2(u1, d2)
        u3 = self.up3(u2, d1)
        return self.up4(u3)


def double_conv(in_ch, out_ch):
    return nn.Sequential(
        nn.Conv2d(in_ch, out_ch, 3, padding=1),
        nn.BatchNorm2d(out_ch),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_ch, out_ch, 3, padding=1),
        nn.BatchNorm2d(out_ch),
        nn.ReLU(inplace=True),
    )


class Up(nn.Module):
    def __init__(self, in_ch, out_ch, bilinear):
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            self.up = nn.ConvTranspose2d(in_ch, in_ch, kernel_size=2, stride=2)
        self.conv = double_conv(in_ch + out_ch, out_ch)

    def forward(self, x, skip):
        x = self.up(x)
        # Downsampling drops rows of sizes that are not multiples of eight.
        dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """The U-Net of segmentation code, with max pooling and double convolutions."""

    def __init__(self, n_channels, n_classes, nf=64, bilinear=True):
        super().__init__()
        self.inc = double_conv(n_channels, nf)
        self.pool = nn.MaxPool2d(2)
        self.down1 = double_conv(nf, nf * 2)
        self.down2 = double_conv(nf * 2, nf * 4)
        self.down3 = double_conv(nf * 4, nf * 8)
        self.up1 = Up(nf * 8, nf * 4, bilinear)
        self.up2 = Up(nf * 4, nf * 2, bilinear)
        self.up3 = Up(nf * 2, nf, bilinear)
        self.outc = nn.Conv2d(nf, n_classes, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(self.pool(x1))
        x3 = self.down2(self.pool(x2))
        x = self.down3(self.pool(x3))
        x = self.up1(x, x3)
        x = self.up2(x, x2)
        x = self.up3(x, x1)
        return self.outc(x)


class ContextEncoder(nn.Module):
    """Fills a hole in an image through a 1x1 bottleneck; passes 0.8 as the eps of batch norm."""

    def __init__(self, channels=3, nf=64, nz=4000):
        super().__init__()

        def downsample(in_feat, out_feat, normalize=True):
            layers = [nn.Conv2d(in_feat, out_feat, 4, stride=2, padding=1)]
            if normalize:
                layers.append(nn.BatchNorm2d(out_feat, 0.8))
            layers.append(nn.LeakyReLU(0.2))
            return layers

        def upsample(in_feat, out_feat):
            return [
                nn.ConvTranspose2d(in_feat, out_feat, 4, stride=2, padding=1),
                nn.BatchNorm2d(out_feat, 0.8),
                nn.ReLU(),
            ]

        self.model = nn.Sequential(
            *downsample(channels, nf, normalize=False),
            *downsample(nf, nf * 2),
            *downsample(nf * 2, nf * 4),
            *downsample(nf * 4, nf * 8),
            nn.Conv2d(nf * 8, nz, 1),
            *upsample(nz, nf * 8),
            *upsample(nf * 8, nf * 4),
            *upsample(nf * 4, nf),
            nn.Conv2d(nf, channels, 3, 1, 1),
            nn.Tanh(),
        )

    def forward(self, x):
        return self.model(x)


class ConvBlock(nn.Sequential):
    def __init__(self, in_channel, out_channel, ker_size, padd, stride):
        super(ConvBlock, self).__init__()
        self.add_module("conv", nn.Conv2d(in_channel, out_channel, kernel_size=ker_size, stride=stride, padding=padd))
        self.add_module("norm", nn.BatchNorm2d(out_channel))
        self.add_module("LeakyRelu", nn.LeakyReLU(0.2, inplace=True))


class SinGANGenerator(nn.Module):
    """Blocks are subclasses of Sequential without padding; crops and adds the image of the coarser scale."""

    def __init__(self, nfc=32, min_nfc=32, num_layer=5, ker_size=3, padd_size=0):
        super(SinGANGenerator, self).__init__()
        N = nfc
        self.head = ConvBlock(3, N, ker_size, padd_size, 1)
        self.body = nn.Sequential()
        for i in range(num_layer - 2):
            previous, N = N, max(int(nfc / pow(2, i + 1)), min_nfc)
            self.body.add_module(f"block{i + 1}", ConvBlock(previous, N, ker_size, padd_size, 1))
        self.tail = nn.Sequential(nn.Conv2d(N, 3, ker_size, 1, padd_size), nn.Tanh())

    def forward(self, x, y):
        x = self.tail(self.body(self.head(x)))
        ind = int((y.shape[2] - x.shape[2]) / 2)
        y = y[:, :, ind : (y.shape[2] - ind), ind : (y.shape[3] - ind)]
        return x + y
