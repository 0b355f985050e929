"""DCGANs with explicit forward functions: F.relu(self.bn1(self.conv1(x))), loops over lists, lists of features."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


def normal_init(m, mean, std):
    if isinstance(m, (nn.ConvTranspose2d, nn.Conv2d)):
        m.weight.data.normal_(mean, std)
        m.bias.data.zero_()


class Generator(nn.Module):
    """Layers named deconvK and deconvK_bn; convolutions have a bias before batch norm."""

    def __init__(self, d=128):
        super(Generator, self).__init__()
        self.deconv1 = nn.ConvTranspose2d(100, d * 8, 4, 1, 0)
        self.deconv1_bn = nn.BatchNorm2d(d * 8)
        self.deconv2 = nn.ConvTranspose2d(d * 8, d * 4, 4, 2, 1)
        self.deconv2_bn = nn.BatchNorm2d(d * 4)
        self.deconv3 = nn.ConvTranspose2d(d * 4, d * 2, 4, 2, 1)
        self.deconv3_bn = nn.BatchNorm2d(d * 2)
        self.deconv4 = nn.ConvTranspose2d(d * 2, d, 4, 2, 1)
        self.deconv4_bn = nn.BatchNorm2d(d)
        self.deconv5 = nn.ConvTranspose2d(d, 1, 4, 2, 1)

    def weight_init(self, mean, std):
        for m in self._modules:
            normal_init(self._modules[m], mean, std)

    def forward(self, input):
        x = F.relu(self.deconv1_bn(self.deconv1(input)))
        x = F.relu(self.deconv2_bn(self.deconv2(x)))
        x = F.relu(self.deconv3_bn(self.deconv3(x)))
        x = F.relu(self.deconv4_bn(self.deconv4(x)))
        x = torch.tanh(self.deconv5(x))
        return x


class Discriminator(nn.Module):
    def __init__(self, d=128):
        super(Discriminator, self).__init__()
        self.conv1 = nn.Conv2d(1, d, 4, 2, 1)
        self.conv2 = nn.Conv2d(d, d * 2, 4, 2, 1)
        self.conv2_bn = nn.BatchNorm2d(d * 2)
        self.conv3 = nn.Conv2d(d * 2, d * 4, 4, 2, 1)
        self.conv3_bn = nn.BatchNorm2d(d * 4)
        self.conv4 = nn.Conv2d(d * 4, d * 8, 4, 2, 1)
        self.conv4_bn = nn.BatchNorm2d(d * 8)
        self.conv5 = nn.Conv2d(d * 8, 1, 4, 1, 0)

    def weight_init(self, mean, std):
        for m in self._modules:
            normal_init(self._modules[m], mean, std)

    def forward(self, input):
        x = F.leaky_relu(self.conv1(input), 0.2)
        x = F.leaky_relu(self.conv2_bn(self.conv2(x)), 0.2)
        x = F.leaky_relu(self.conv3_bn(self.conv3(x)), 0.2)
        x = F.leaky_relu(self.conv4_bn(self.conv4(x)), 0.2)
        x = torch.sigmoid(self.conv5(x))
        return x


def deconv(in_channels, out_channels, kernel_size, stride=2, padding=1, batch_norm=True):
    layers = [nn.ConvTranspose2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


def conv(in_channels, out_channels, kernel_size, stride=2, padding=1, batch_norm=True):
    layers = [nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


class HelperGenerator(nn.Module):
    """Convolution and norm are one Sequential; forward applies the activation."""

    def __init__(self, z_size, conv_dim=32):
        super().__init__()
        self.conv_dim = conv_dim
        self.fc = nn.Linear(z_size, conv_dim * 4 * 4 * 4)
        self.t_conv1 = deconv(conv_dim * 4, conv_dim * 2, 4)
        self.t_conv2 = deconv(conv_dim * 2, conv_dim, 4)
        self.t_conv3 = deconv(conv_dim, 3, 4, batch_norm=False)

    def forward(self, x):
        out = self.fc(x)
        out = out.view(-1, self.conv_dim * 4, 4, 4)
        out = F.relu(self.t_conv1(out))
        out = F.relu(self.t_conv2(out))
        out = self.t_conv3(out)
        return F.tanh(out)


class HelperDiscriminator(nn.Module):
    """Uses F.dropout with self.training, and ends in linear layers."""

    def __init__(self, conv_dim=32, drop_prob=0.3):
        super().__init__()
        self.conv_dim = conv_dim
        self.drop_prob = drop_prob
        self.conv1 = conv(3, conv_dim, 4, batch_norm=False)
        self.conv2 = conv(conv_dim, conv_dim * 2, 4)
        self.conv3 = conv(conv_dim * 2, conv_dim * 4, 4)
        self.fc = nn.Linear(conv_dim * 4 * 4 * 4, 1)

    def forward(self, x):
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.dropout(x, p=self.drop_prob, training=self.training)
        x = F.leaky_relu(self.conv2(x), 0.2)
        x = F.leaky_relu(self.conv3(x), 0.2)
        x = x.view(-1, self.conv_dim * 4 * 4 * 4)
        return self.fc(x)


class LoopDiscriminator(nn.Module):
    """Iterates over zipped lists of convolutions and norms."""

    def __init__(self, channels=(3, 64, 128, 256, 512), norm=nn.BatchNorm2d):
        super().__init__()
        self.convs = nn.ModuleList()
        self.bns = nn.ModuleList()
        for i in range(len(channels) - 1):
            self.convs.append(nn.Conv2d(channels[i], channels[i + 1], 5, 2, 2, bias=False))
            self.bns.append(norm(channels[i + 1]))
        self.fc = nn.Linear(channels[-1] * 4 * 4, 1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, a=0.2)

    def forward(self, x):
        for conv, bn in zip(self.convs, self.bns):
            x = F.leaky_relu(bn(conv(x)), 0.2)
        return self.fc(x.reshape(x.size(0), -1))


class LoopGenerator(nn.Module):
    """Registers layers with setattr; one ReLU module serves all of them."""

    def __init__(self, z_dim, channels=(512, 256, 128, 64), out_channels=3):
        super().__init__()
        self.num_layers = len(channels) - 1
        self.channels = channels
        self.linear = nn.Linear(z_dim, channels[0] * 4 * 4, bias=False)
        self.bn0 = nn.BatchNorm1d(channels[0] * 4 * 4)
        for i in range(self.num_layers):
            setattr(
                self,
                f"deconv{i + 1}",
                nn.ConvTranspose2d(channels[i], channels[i + 1], 5, 2, 2, output_padding=1, bias=False),
            )
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(channels[i + 1]))
        self.out = nn.ConvTranspose2d(channels[-1], out_channels, 5, 2, 2, output_padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.tanh = nn.Tanh()

    def forward(self, z):
        h = self.relu(self.bn0(self.linear(z)))
        h = h.view(-1, self.channels[0], 4, 4)
        for i in range(1, self.num_layers + 1):
            h = getattr(self, f"deconv{i}")(h)
            h = getattr(self, f"bn{i}")(h)
            h = self.relu(h)
        return self.tanh(self.out(h))


class FeatureDiscriminator(nn.Module):
    """Returns the features of every layer by name, for feature matching."""

    def __init__(self, in_channels=3, nf=64, n_layers=4):
        super().__init__()
        layers = OrderedDict()
        for i in range(n_layers):
            out_channels = nf * 2**i
            layers[f"layer{i}"] = nn.Sequential(
                OrderedDict(
                    [
                        ("conv", nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=i == 0)),
                        ("norm", nn.BatchNorm2d(out_channels) if i > 0 else nn.Identity()),
                        ("act", nn.LeakyReLU(negative_slope=0.2)),
                    ]
                )
            )
            in_channels = out_channels
        self.layers = nn.Sequential(layers)
        self.classifier = nn.Conv2d(in_channels, 1, 4)

    def forward(self, x):
        features = {}
        for name, layer in self.layers.named_children():
            x = layer(x)
            features[name] = x
        return {"logits": self.classifier(x).flatten(), "features": features}


class TupleDiscriminator(nn.Module):
    """Shares one activation module between layers, and returns its inputs with the logits."""

    def __init__(self, nc=3, ndf=64):
        super().__init__()
        self.conv1 = nn.Conv2d(nc, ndf, 4, 2, 1, bias=False)
        self.conv2 = nn.Conv2d(ndf, ndf * 2, 4, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(ndf * 2)
        self.conv3 = nn.Conv2d(ndf * 2, ndf * 4, 4, 2, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(ndf * 4)
        self.conv4 = nn.Conv2d(ndf * 4, ndf * 8, 4, 2, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(ndf * 8)
        self.conv5 = nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False)
        self.lrelu = nn.LeakyReLU(0.2)

    def forward(self, x):
        feats1 = self.lrelu(self.conv1(x))
        pre2 = self.bn2(self.conv2(feats1))
        feats2 = self.lrelu(pre2)
        pre3 = self.bn3(self.conv3(feats2))
        feats3 = self.lrelu(pre3)
        feats4 = self.lrelu(self.bn4(self.conv4(feats3)))
        out = self.conv5(feats4)
        return out.view(-1), [pre2, pre3, feats4]
