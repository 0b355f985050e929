"""Audio GANs: WaveGAN with phase shuffle, MelGAN with weight norm, dilations and sub-discriminators."""

import random

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import weight_norm


class Transpose1dLayer(nn.Module):
    """A transposed convolution, or with ``upsample`` nearest-neighbor upsampling and a padded convolution."""

    def __init__(self, in_channels, out_channels, kernel_size=25, stride=4, upsample=None, use_batch_norm=False):
        super(Transpose1dLayer, self).__init__()
        self.upsample = upsample
        if upsample:
            operation_list = [
                nn.Upsample(scale_factor=upsample),
                nn.ConstantPad1d(kernel_size // 2, value=0),
                nn.Conv1d(in_channels, out_channels, kernel_size, stride=1),
            ]
        else:
            operation_list = [
                nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride, padding=11, output_padding=1)
            ]
        if use_batch_norm:
            operation_list.append(nn.BatchNorm1d(out_channels))
        self.transpose_ops = nn.Sequential(*operation_list)

    def forward(self, x):
        return self.transpose_ops(x)


class WaveGANGenerator(nn.Module):
    def __init__(
        self, model_size=64, latent_dim=100, num_channels=1, upsample=None, use_batch_norm=False, verbose=False
    ):
        super(WaveGANGenerator, self).__init__()
        self.model_size = model_size
        self.verbose = verbose
        self.fc1 = nn.Linear(latent_dim, 64 * model_size)
        self.bn1 = nn.BatchNorm1d(4 * model_size)
        self.use_batch_norm = use_batch_norm
        self.deconv_list = nn.ModuleList(
            [
                Transpose1dLayer(4 * model_size, 2 * model_size, upsample=upsample, use_batch_norm=use_batch_norm),
                Transpose1dLayer(2 * model_size, model_size, upsample=upsample, use_batch_norm=use_batch_norm),
                Transpose1dLayer(model_size, num_channels, upsample=upsample),
            ]
        )
        for m in self.modules():
            if isinstance(m, (nn.ConvTranspose1d, nn.Conv1d, nn.Linear)):
                nn.init.kaiming_normal_(m.weight.data)

    def forward(self, x):
        x = self.fc1(x).view(-1, 4 * self.model_size, 16)
        if self.use_batch_norm:
            x = self.bn1(x)
        x = F.relu(x)
        if self.verbose:
            print(x.shape)
        for deconv in self.deconv_list[:-1]:
            x = F.relu(deconv(x))
            if self.verbose:
                print(x.shape)
        output = torch.tanh(self.deconv_list[-1](x))
        return output


class PhaseShuffle(nn.Module):
    """Shifts each sample by a random integer with reflection padding."""

    def __init__(self, shift_factor):
        super(PhaseShuffle, self).__init__()
        self.shift_factor = shift_factor

    def forward(self, x):
        if self.shift_factor == 0:
            return x
        k_list = torch.empty(x.shape[0]).random_(0, 2 * self.shift_factor + 1) - self.shift_factor
        k_list = k_list.numpy().astype(int)
        k_map = {}
        for idx, k in enumerate(k_list):
            k_map.setdefault(int(k), []).append(idx)

        x_shuffle = x.clone()
        for k, idxs in k_map.items():
            if k > 0:
                x_shuffle[idxs] = F.pad(x[idxs][..., :-k], (k, 0), mode="reflect")
            elif k < 0:
                x_shuffle[idxs] = F.pad(x[idxs][..., -k:], (0, -k), mode="reflect")
        return x_shuffle


class Conv1D(nn.Module):
    def __init__(self, in_ch, out_ch, kernel_size=25, alpha=0.2, shift_factor=2, stride=4, padding=11, drop_prob=0):
        super(Conv1D, self).__init__()
        self.conv1d = nn.Conv1d(in_ch, out_ch, kernel_size, stride=stride, padding=padding)
        self.batch_norm = nn.BatchNorm1d(out_ch)
        self.phase_shuffle = PhaseShuffle(shift_factor)
        self.alpha = alpha
        self.use_phase_shuffle = shift_factor != 0
        self.use_drop = drop_prob > 0
        self.dropout = nn.Dropout2d(drop_prob)

    def forward(self, x):
        x = self.conv1d(x)
        x = self.batch_norm(x)
        x = F.leaky_relu(x, negative_slope=self.alpha)
        if self.use_phase_shuffle:
            x = self.phase_shuffle(x)
        if self.use_drop:
            x = self.dropout(x)
        return x


class WaveGANDiscriminator(nn.Module):
    def __init__(self, model_size=64, num_channels=1, shift_factor=2, length=1024):
        super(WaveGANDiscriminator, self).__init__()
        conv_layers = []
        in_ch, out_ch = num_channels, model_size
        while length > 16:
            conv_layers.append(Conv1D(in_ch, out_ch, shift_factor=shift_factor if length > 64 else 0))
            in_ch, out_ch = out_ch, out_ch * 2
            length //= 4
        self.fc_input_size = length * in_ch
        self.conv_layers = nn.ModuleList(conv_layers)
        self.fc1 = nn.Linear(self.fc_input_size, 1)

    def forward(self, x):
        for conv in self.conv_layers:
            x = conv(x)
        x = x.view(-1, self.fc_input_size)
        return self.fc1(x)


class BatchShuffleDiscriminator(nn.Module):
    """Draws one shift for the whole batch with Python's random; none in evaluation."""

    def __init__(self, d=64, n=2):
        super().__init__()
        self.n = n
        self.conv1 = nn.Conv1d(1, d, 25, stride=4, padding=11)
        self.conv2 = nn.Conv1d(d, d * 2, 25, stride=4, padding=11, bias=False)
        self.norm2 = nn.InstanceNorm1d(d * 2)
        self.conv3 = nn.Conv1d(d * 2, d * 4, 25, stride=4, padding=11, bias=False)
        self.norm3 = nn.InstanceNorm1d(d * 4, affine=True)
        self.out = nn.Conv1d(d * 4, 1, 4)

    def shuffle(self, x):
        if not self.training:
            return x
        shift = random.randint(-self.n, self.n)
        padded = F.pad(x, (max(shift, 0), max(-shift, 0)), mode="reflect")
        return padded[:, :, : x.size(2)] if shift >= 0 else padded[:, :, -x.size(2) :]

    def forward(self, x):
        x = self.shuffle(F.leaky_relu(self.conv1(x), 0.2))
        x = self.shuffle(F.leaky_relu(self.norm2(self.conv2(x)), 0.2))
        x = F.leaky_relu(self.norm3(self.conv3(x)), 0.2)
        return self.out(x).mean(dim=2).squeeze(1)


def wn_conv1d(*args, **kwargs):
    return weight_norm(nn.Conv1d(*args, **kwargs))


def wn_conv_transpose1d(*args, **kwargs):
    return weight_norm(nn.ConvTranspose1d(*args, **kwargs))


class ResnetBlock(nn.Module):
    def __init__(self, dim, dilation=1):
        super().__init__()
        self.block = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.ReflectionPad1d(dilation),
            wn_conv1d(dim, dim, kernel_size=3, dilation=dilation),
            nn.LeakyReLU(0.2),
            wn_conv1d(dim, dim, kernel_size=1),
        )
        self.shortcut = wn_conv1d(dim, dim, kernel_size=1)

    def forward(self, x):
        return self.shortcut(x) + self.block(x)


class MelGANGenerator(nn.Module):
    def __init__(self, input_size=80, ngf=32, ratios=(8, 8, 2), n_residual_layers=2):
        super().__init__()
        mult = 2 ** len(ratios)
        model = [nn.ReflectionPad1d(3), wn_conv1d(input_size, mult * ngf, kernel_size=7, padding=0)]
        for r in ratios:
            model += [
                nn.LeakyReLU(0.2),
                wn_conv_transpose1d(
                    mult * ngf,
                    mult * ngf // 2,
                    kernel_size=r * 2,
                    stride=r,
                    padding=r // 2 + r % 2,
                    output_padding=r % 2,
                ),
            ]
            for j in range(n_residual_layers):
                model += [ResnetBlock(mult * ngf // 2, dilation=3**j)]
            mult //= 2
        model += [nn.LeakyReLU(0.2), nn.ReflectionPad1d(3), wn_conv1d(ngf, 1, kernel_size=7, padding=0), nn.Tanh()]
        self.model = nn.Sequential(*model)

    def forward(self, x):
        return self.model(x)


class SubDiscriminator(nn.Module):
    """A ModuleDict of stages with grouped convolutions, which returns the output of every stage."""

    def __init__(self, ndf, n_layers, downsampling_factor):
        super().__init__()
        model = nn.ModuleDict()
        model["layer_0"] = nn.Sequential(
            nn.ReflectionPad1d(7), wn_conv1d(1, ndf, kernel_size=15), nn.LeakyReLU(0.2, True)
        )
        nf = ndf
        for n in range(1, n_layers + 1):
            nf_prev, nf = nf, min(nf * downsampling_factor, 1024)
            model[f"layer_{n}"] = nn.Sequential(
                wn_conv1d(
                    nf_prev,
                    nf,
                    kernel_size=downsampling_factor * 10 + 1,
                    stride=downsampling_factor,
                    padding=downsampling_factor * 5,
                    groups=nf_prev // 4,
                ),
                nn.LeakyReLU(0.2, True),
            )
        model[f"layer_{n_layers + 1}"] = nn.Sequential(
            wn_conv1d(nf, nf, kernel_size=5, stride=1, padding=2), nn.LeakyReLU(0.2, True)
        )
        model[f"layer_{n_layers + 2}"] = wn_conv1d(nf, 1, kernel_size=3, stride=1, padding=1)
        self.model = model

    def forward(self, x):
        results = []
        for _key, layer in self.model.items():
            x = layer(x)
            results.append(x)
        return results


class MelGANDiscriminator(nn.Module):
    def __init__(self, num_D=3, ndf=16, n_layers=3, downsampling_factor=4):
        super().__init__()
        self.model = nn.ModuleDict()
        for i in range(num_D):
            self.model[f"disc_{i}"] = SubDiscriminator(ndf, n_layers, downsampling_factor)
        self.downsample = nn.AvgPool1d(4, stride=2, padding=1, count_include_pad=False)

    def forward(self, x):
        results = []
        for disc in self.model.values():
            results.append(disc(x))
            x = self.downsample(x)
        return results
