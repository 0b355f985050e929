"""The style of PyTorch-GAN: opt, nn.Upsample, BatchNorm2d(128, 0.8), blocks as lists."""

import argparse

import torch.nn as nn


def parse_opt(args=()):
    parser = argparse.ArgumentParser()
    parser.add_argument("--latent_dim", type=int, default=100, help="dimensionality of the latent space")
    parser.add_argument("--img_size", type=int, default=32, help="size of each image dimension")
    parser.add_argument("--channels", type=int, default=1, help="number of image channels")
    parser.add_argument("--n_filters", type=int, default=64, help="filters of the last block")
    parser.add_argument("--n_classes", type=int, default=10, help="number of classes for dataset")
    parser.add_argument("--code_dim", type=int, default=2, help="latent code")
    return parser.parse_args(list(args))


def weights_init_normal(m):
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif classname.find("BatchNorm2d") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0.0)


class Generator(nn.Module):
    """Batch norm before the first convolution has no activation; 0.8 is passed as the eps of two others."""

    def __init__(self, opt):
        super(Generator, self).__init__()
        nf = opt.n_filters
        self.init_size = opt.img_size // 4
        self.l1 = nn.Sequential(nn.Linear(opt.latent_dim, nf * 2 * self.init_size**2))

        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(nf * 2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(nf * 2, nf * 2, 3, stride=1, padding=1),
            nn.BatchNorm2d(nf * 2, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(nf * 2, nf, 3, stride=1, padding=1),
            nn.BatchNorm2d(nf, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(nf, opt.channels, 3, stride=1, padding=1),
            nn.Tanh(),
        )

    def forward(self, z):
        out = self.l1(z)
        out = out.view(out.shape[0], -1, self.init_size, self.init_size)
        img = self.conv_blocks(out)
        return img


class Discriminator(nn.Module):
    """Batch norm follows activation and dropout."""

    def __init__(self, opt, activation=None):
        super(Discriminator, self).__init__()

        def discriminator_block(in_filters, out_filters, bn=True):
            block = [
                nn.Conv2d(in_filters, out_filters, 3, 2, 1),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Dropout2d(0.25),
            ]
            if bn:
                block.append(nn.BatchNorm2d(out_filters, 0.8))
            return block

        nf = opt.n_filters // 4
        self.model = nn.Sequential(
            *discriminator_block(opt.channels, nf, bn=False),
            *discriminator_block(nf, nf * 2),
            *discriminator_block(nf * 2, nf * 4),
            *discriminator_block(nf * 4, nf * 8),
        )

        ds_size = opt.img_size // 2**4
        self.adv_layer = nn.Sequential(nn.Linear(nf * 8 * ds_size**2, 1))
        if activation is not None:
            self.adv_layer.add_module("activation", activation)

    def forward(self, img):
        out = self.model(img)
        out = out.view(out.shape[0], -1)
        validity = self.adv_layer(out)
        return validity
