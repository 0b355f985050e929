"""Networks with labels: ACGAN, InfoGAN, conditional DCGANs, a label embedding as an extra channel."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ACGANGenerator(nn.Module):
    """Multiplies the noise by the label's embedding."""

    def __init__(self, opt):
        super(ACGANGenerator, self).__init__()
        nf = opt.n_filters
        self.label_emb = nn.Embedding(opt.n_classes, opt.latent_dim)
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

    def forward(self, noise, labels):
        gen_input = torch.mul(self.label_emb(labels), noise)
        out = self.l1(gen_input)
        out = out.view(out.shape[0], -1, self.init_size, self.init_size)
        img = self.conv_blocks(out)
        return img


class ACGANDiscriminator(nn.Module):
    def __init__(self, opt):
        super(ACGANDiscriminator, self).__init__()

        def discriminator_block(in_filters, out_filters, bn=True):
            block = [nn.Conv2d(in_filters, out_filters, 3, 2, 1), nn.LeakyReLU(0.2, inplace=True), nn.Dropout2d(0.25)]
            if bn:
                block.append(nn.BatchNorm2d(out_filters, 0.8))
            return block

        nf = opt.n_filters // 4
        self.conv_blocks = nn.Sequential(
            *discriminator_block(opt.channels, nf, bn=False),
            *discriminator_block(nf, nf * 2),
            *discriminator_block(nf * 2, nf * 4),
            *discriminator_block(nf * 4, nf * 8),
        )
        ds_size = opt.img_size // 2**4
        self.adv_layer = nn.Sequential(nn.Linear(nf * 8 * ds_size**2, 1), nn.Sigmoid())
        self.aux_layer = nn.Sequential(nn.Linear(nf * 8 * ds_size**2, opt.n_classes), nn.Softmax(dim=1))

    def forward(self, img):
        out = self.conv_blocks(img)
        out = out.view(out.shape[0], -1)
        validity = self.adv_layer(out)
        label = self.aux_layer(out)
        return validity, label


class InfoGANGenerator(nn.Module):
    """Concatenates noise, label and code, followed by transposed convolutions."""

    def __init__(self, latent_dim=62, n_classes=10, code_dim=2, nf=64):
        super().__init__()
        self.tconv1 = nn.ConvTranspose2d(latent_dim + n_classes + code_dim, nf * 16, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(nf * 16)
        self.tconv2 = nn.ConvTranspose2d(nf * 16, nf * 2, 7, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(nf * 2)
        self.tconv3 = nn.ConvTranspose2d(nf * 2, nf, 4, 2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(nf)
        self.tconv4 = nn.ConvTranspose2d(nf, 1, 4, 2, padding=1, bias=False)

    def forward(self, noise, labels, code):
        x = torch.cat((noise, labels, code), -1)[:, :, None, None]
        x = F.relu(self.bn1(self.tconv1(x)))
        x = F.relu(self.bn2(self.tconv2(x)))
        x = F.relu(self.bn3(self.tconv3(x)))
        return torch.sigmoid(self.tconv4(x))


class InfoGANDiscriminator(nn.Module):
    """A shared trunk with heads for validity, class, and mean and variance of the code."""

    def __init__(self, n_classes=10, code_dim=2, nf=64):
        super().__init__()
        self.conv1 = nn.Conv2d(1, nf, 4, 2, 1)
        self.conv2 = nn.Conv2d(nf, nf * 2, 4, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(nf * 2)
        self.conv3 = nn.Conv2d(nf * 2, nf * 16, 7, bias=False)
        self.bn3 = nn.BatchNorm2d(nf * 16)

        self.conv_d = nn.Conv2d(nf * 16, 1, 1)
        self.conv_q = nn.Conv2d(nf * 16, nf * 2, 1, bias=False)
        self.bn_q = nn.BatchNorm2d(nf * 2)
        self.conv_disc = nn.Conv2d(nf * 2, n_classes, 1)
        self.conv_mu = nn.Conv2d(nf * 2, code_dim, 1)
        self.conv_var = nn.Conv2d(nf * 2, code_dim, 1)

    def forward(self, x):
        x = F.leaky_relu(self.conv1(x), 0.1, inplace=True)
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.1, inplace=True)
        x = F.leaky_relu(self.bn3(self.conv3(x)), 0.1, inplace=True)
        validity = torch.sigmoid(self.conv_d(x)).view(-1, 1)
        q = F.leaky_relu(self.bn_q(self.conv_q(x)), 0.1, inplace=True)
        disc_logits = self.conv_disc(q).squeeze()
        mu = self.conv_mu(q).squeeze()
        var = torch.exp(self.conv_var(q).squeeze())
        return validity, disc_logits, mu, var


class CDCGANGenerator(nn.Module):
    """A separate transposed convolution for noise and one-hot label, whose outputs are concatenated."""

    def __init__(self, d=128, nz=100, n_classes=10):
        super(CDCGANGenerator, self).__init__()
        self.deconv1_1 = nn.ConvTranspose2d(nz, d * 2, 4, 1, 0)
        self.deconv1_1_bn = nn.BatchNorm2d(d * 2)
        self.deconv1_2 = nn.ConvTranspose2d(n_classes, d * 2, 4, 1, 0)
        self.deconv1_2_bn = nn.BatchNorm2d(d * 2)
        self.deconv2 = nn.ConvTranspose2d(d * 4, d * 2, 4, 2, 1)
        self.deconv2_bn = nn.BatchNorm2d(d * 2)
        self.deconv3 = nn.ConvTranspose2d(d * 2, d, 4, 2, 1)
        self.deconv3_bn = nn.BatchNorm2d(d)
        self.deconv4 = nn.ConvTranspose2d(d, 1, 4, 2, 1)

    def forward(self, input, label):
        x = F.relu(self.deconv1_1_bn(self.deconv1_1(input)))
        y = F.relu(self.deconv1_2_bn(self.deconv1_2(label)))
        x = torch.cat([x, y], 1)
        x = F.relu(self.deconv2_bn(self.deconv2(x)))
        x = F.relu(self.deconv3_bn(self.deconv3(x)))
        x = torch.tanh(self.deconv4(x))
        return x


class CDCGANDiscriminator(nn.Module):
    """Takes the label as planes of zeros and ones."""

    def __init__(self, d=128, n_classes=10):
        super(CDCGANDiscriminator, self).__init__()
        self.conv1_1 = nn.Conv2d(1, d // 2, 4, 2, 1)
        self.conv1_2 = nn.Conv2d(n_classes, d // 2, 4, 2, 1)
        self.conv2 = nn.Conv2d(d, d * 2, 4, 2, 1)
        self.conv2_bn = nn.BatchNorm2d(d * 2)
        self.conv3 = nn.Conv2d(d * 2, d * 4, 4, 2, 1)
        self.conv3_bn = nn.BatchNorm2d(d * 4)
        self.conv4 = nn.Conv2d(d * 4, 1, 4, 1, 0)

    def forward(self, input, label):
        fill = label[:, :, None, None].expand(-1, -1, input.size(2), input.size(3))
        x = F.leaky_relu(self.conv1_1(input), 0.2)
        y = F.leaky_relu(self.conv1_2(fill), 0.2)
        x = torch.cat([x, y], 1)
        x = F.leaky_relu(self.conv2_bn(self.conv2(x)), 0.2)
        x = F.leaky_relu(self.conv3_bn(self.conv3(x)), 0.2)
        x = torch.sigmoid(self.conv4(x))
        return x


class EmbeddingDiscriminator(nn.Module):
    """The label's embedding is an extra image channel; a method makes the blocks."""

    def __init__(self, channels=3, img_size=64, num_classes=10, features_d=64):
        super().__init__()
        self.img_size = img_size
        self.disc = nn.Sequential(
            nn.Conv2d(channels + 1, features_d, kernel_size=4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            self._block(features_d, features_d * 2, 4, 2, 1),
            self._block(features_d * 2, features_d * 4, 4, 2, 1),
            self._block(features_d * 4, features_d * 8, 4, 2, 1),
            nn.Conv2d(features_d * 8, 1, kernel_size=img_size // 16, stride=2, padding=0),
        )
        self.embed = nn.Embedding(num_classes, img_size * img_size)

    def _block(self, in_channels, out_channels, kernel_size, stride, padding):
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False),
            nn.InstanceNorm2d(out_channels, affine=True),
            nn.LeakyReLU(0.2),
        )

    def forward(self, x, labels):
        embedding = self.embed(labels).view(labels.shape[0], 1, self.img_size, self.img_size)
        x = torch.cat([x, embedding], dim=1)
        return self.disc(x)
