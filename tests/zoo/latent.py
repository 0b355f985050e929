"""Networks with a latent code: perceptrons, BEGAN, adversarial autoencoders, VAE-GAN, ALI with dropout and maxout."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class MLPGenerator(nn.Module):
    def __init__(self, latent_dim=100, img_shape=(1, 28, 28), width=128):
        super(MLPGenerator, self).__init__()
        self.img_shape = img_shape

        def block(in_feat, out_feat, normalize=True):
            layers = [nn.Linear(in_feat, out_feat)]
            if normalize:
                layers.append(nn.BatchNorm1d(out_feat, 0.8))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            return layers

        self.model = nn.Sequential(
            *block(latent_dim, width, normalize=False),
            *block(width, width * 2),
            *block(width * 2, width * 4),
            *block(width * 4, width * 8),
            nn.Linear(width * 8, int(np.prod(img_shape))),
            nn.Tanh(),
        )

    def forward(self, z):
        img = self.model(z)
        img = img.view(img.size(0), *self.img_shape)
        return img


class MLPDiscriminator(nn.Module):
    def __init__(self, img_shape=(1, 28, 28), width=256):
        super(MLPDiscriminator, self).__init__()
        self.model = nn.Sequential(
            nn.Linear(int(np.prod(img_shape)), width * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(width * 2, width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(width, 1),
            nn.Sigmoid(),
        )

    def forward(self, img):
        img_flat = img.view(img.size(0), -1)
        validity = self.model(img_flat)
        return validity


class BEGANDiscriminator(nn.Module):
    """An autoencoder with ELU, which returns the reconstruction."""

    def __init__(self, hidden_num=128, h=64, size=64, repeat_num=4):
        super(BEGANDiscriminator, self).__init__()
        self.hidden_num = hidden_num
        self.bottom = size // 2 ** (repeat_num - 1)
        layers = [nn.Conv2d(3, hidden_num, 3, 1, 1), nn.ELU(True)]
        channels = hidden_num
        for idx in range(repeat_num):
            out_channels = hidden_num * (idx + 1)
            layers += [nn.Conv2d(channels, out_channels, 3, 1, 1), nn.ELU(True)]
            if idx < repeat_num - 1:
                layers += [nn.Conv2d(out_channels, out_channels, 3, 2, 1), nn.ELU(True)]
            channels = out_channels
        self.conv1 = nn.Sequential(*layers)
        self.fc_enc = nn.Linear(self.bottom**2 * channels, h)
        self.fc_dec = nn.Linear(h, self.bottom**2 * hidden_num)

        layers = []
        for idx in range(repeat_num):
            layers += [nn.Conv2d(hidden_num, hidden_num, 3, 1, 1), nn.ELU(True)]
            if idx < repeat_num - 1:
                layers += [nn.UpsamplingNearest2d(scale_factor=2)]
        layers.append(nn.Conv2d(hidden_num, 3, 3, 1, 1))
        self.conv2 = nn.Sequential(*layers)

    def forward(self, x):
        x = self.conv1(x)
        x = x.view(x.size(0), -1)
        x = self.fc_enc(x)
        x = self.fc_dec(x)
        x = x.view(-1, self.hidden_num, self.bottom, self.bottom)
        return self.conv2(x)


def reparameterization(mu, logvar):
    std = torch.exp(logvar / 2)
    sampled_z = torch.randn_like(mu)
    z = sampled_z * std + mu
    return z


class AAE(nn.Module):
    """An adversarial autoencoder of linear layers, with encoder and decoder in one module."""

    def __init__(self, img_shape=(1, 32, 32), width=512, latent_dim=10):
        super(AAE, self).__init__()
        self.img_shape = img_shape
        features = int(np.prod(img_shape))
        self.encoder = nn.Sequential(
            nn.Linear(features, width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.mu = nn.Linear(width, latent_dim)
        self.logvar = nn.Linear(width, latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(width, features),
            nn.Tanh(),
        )

    def forward(self, img):
        x = self.encoder(torch.flatten(img, start_dim=1))
        z = reparameterization(self.mu(x), self.logvar(x))
        decoded = self.decoder(z)
        return decoded.view(decoded.shape[0], *self.img_shape), z


class EncoderBlock(nn.Module):
    """Optionally also returns the input of the norm."""

    def __init__(self, channel_in, channel_out):
        super(EncoderBlock, self).__init__()
        self.conv = nn.Conv2d(channel_in, channel_out, kernel_size=5, padding=2, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(num_features=channel_out, momentum=0.9)

    def forward(self, ten, out=False):
        ten = self.conv(ten)
        ten_out = ten
        ten = self.bn(ten)
        ten = F.relu(ten, False)
        if out:
            return ten, ten_out
        return ten


class DecoderBlock(nn.Module):
    def __init__(self, channel_in, channel_out):
        super(DecoderBlock, self).__init__()
        self.conv = nn.ConvTranspose2d(channel_in, channel_out, 5, padding=2, stride=2, output_padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channel_out, momentum=0.9)

    def forward(self, ten):
        ten = self.conv(ten)
        ten = self.bn(ten)
        ten = F.relu(ten, True)
        return ten


class VAEGAN(nn.Module):
    """Encoder and decoder; evaluation takes another path."""

    def __init__(self, z_size=128, nf=64, size=32):
        super(VAEGAN, self).__init__()
        self.z_size, self.nf, self.bottom = z_size, nf, size // 8
        self.encoder = nn.Sequential(EncoderBlock(3, nf), EncoderBlock(nf, nf * 2), EncoderBlock(nf * 2, nf * 4))
        self.fc = nn.Sequential(
            nn.Linear(self.bottom**2 * nf * 4, nf * 16, bias=False),
            nn.BatchNorm1d(nf * 16, momentum=0.9),
            nn.ReLU(True),
        )
        self.l_mu = nn.Linear(nf * 16, z_size)
        self.l_var = nn.Linear(nf * 16, z_size)
        self.fc_dec = nn.Sequential(
            nn.Linear(z_size, self.bottom**2 * nf * 4, bias=False),
            nn.BatchNorm1d(self.bottom**2 * nf * 4, momentum=0.9),
            nn.ReLU(True),
        )
        blocks = [DecoderBlock(nf * 4, nf * 4), DecoderBlock(nf * 4, nf * 2), DecoderBlock(nf * 2, nf // 2)]
        self.conv = nn.Sequential(*blocks, nn.Sequential(nn.Conv2d(nf // 2, 3, 5, stride=1, padding=2), nn.Tanh()))

    def forward(self, x):
        ten = self.encoder(x)
        ten = self.fc(ten.view(len(ten), -1))
        mus = self.l_mu(ten)
        log_variances = self.l_var(ten)
        z = reparameterization(mus, log_variances) if self.training else mus
        ten = self.fc_dec(z)
        ten = ten.view(len(ten), -1, self.bottom, self.bottom)
        return self.conv(ten), mus, log_variances


class VAEGANDiscriminator(nn.Module):
    """Returns a layer's features before its norm, and scores, from one pass."""

    def __init__(self, nf=32, recon_level=2, size=32):
        super(VAEGANDiscriminator, self).__init__()
        self.recon_level = recon_level
        self.conv = nn.ModuleList()
        self.conv.append(nn.Sequential(nn.Conv2d(3, nf, 5, stride=1, padding=2), nn.ReLU(inplace=True)))
        self.conv.append(EncoderBlock(channel_in=nf, channel_out=nf * 4))
        self.conv.append(EncoderBlock(channel_in=nf * 4, channel_out=nf * 8))
        self.conv.append(EncoderBlock(channel_in=nf * 8, channel_out=nf * 8))
        self.fc = nn.Sequential(
            nn.Linear((size // 8) ** 2 * nf * 8, nf * 16, bias=False),
            nn.BatchNorm1d(nf * 16, momentum=0.9),
            nn.ReLU(inplace=True),
            nn.Linear(nf * 16, 1),
        )

    def forward(self, ten):
        layer_ten = None
        for i, layer in enumerate(self.conv):
            if i == self.recon_level:
                ten, layer_ten = layer(ten, True)
                layer_ten = layer_ten.view(len(layer_ten), -1)
            else:
                ten = layer(ten)
        ten = self.fc(ten.view(len(ten), -1))
        return layer_ten, torch.sigmoid(ten)


class ALIDiscriminator(nn.Module):
    """Scores pairs of image and code, with dropout before every convolution and a final maxout."""

    def __init__(self, z_dim=64, nf=32):
        super(ALIDiscriminator, self).__init__()
        self.inference_x = nn.Sequential(
            nn.Dropout2d(0.2),
            nn.Conv2d(3, nf, 5, 1, bias=True),
            nn.LeakyReLU(0.02, inplace=True),
            nn.Dropout2d(0.5),
            nn.Conv2d(nf, nf * 2, 4, 2, bias=False),
            nn.BatchNorm2d(nf * 2),
            nn.LeakyReLU(0.02, inplace=True),
            nn.Dropout2d(0.5),
            nn.Conv2d(nf * 2, nf * 4, 4, 2, bias=False),
            nn.BatchNorm2d(nf * 4),
            nn.LeakyReLU(0.02, inplace=True),
        )
        self.inference_z = nn.Sequential(
            nn.Dropout2d(0.2), nn.Conv2d(z_dim, nf * 4, 1, 1), nn.LeakyReLU(0.02), nn.Dropout2d(0.5)
        )
        self.joint1 = nn.Conv2d(nf * 8, nf * 16, 1, 1)
        self.joint2 = nn.Conv2d(nf * 8, 1, 1, 1)

    def forward(self, x, z):
        output_x = self.inference_x(x).mean(dim=(2, 3), keepdim=True)
        output_z = self.inference_z(z)
        joint = self.joint1(torch.cat((output_x, output_z), dim=1))
        joint = torch.max(*joint.chunk(2, dim=1))
        output = torch.sigmoid(self.joint2(joint))
        return output.view(output.size()[0], -1)
