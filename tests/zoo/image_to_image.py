"""CycleGAN and pix2pix: a ResNet generator, a recursive U-Net, single- and multi-scale PatchGANs."""

import functools

import torch
import torch.nn as nn


def norm_by_name(norm_type):
    if norm_type == "batch":
        return functools.partial(nn.BatchNorm2d, affine=True, track_running_stats=True)
    if norm_type == "instance":
        return functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    raise NotImplementedError(f"norm {norm_type} is not implemented")


def needs_bias(norm_layer):
    if type(norm_layer) is functools.partial:
        norm_layer = norm_layer.func
    return norm_layer == nn.InstanceNorm2d


def init_weights(net, gain=0.02):
    def init_func(m):
        kind = type(m).__name__
        if "Conv" in kind and hasattr(m, "weight"):
            nn.init.normal_(m.weight.data, 0.0, gain)
            if m.bias is not None:
                nn.init.constant_(m.bias.data, 0.0)
        elif "BatchNorm2d" in kind:
            nn.init.normal_(m.weight.data, 1.0, gain)
            nn.init.constant_(m.bias.data, 0.0)

    net.apply(init_func)
    return net


class ResnetBlock(nn.Module):
    """Pads with a module or in the convolution, chosen by name; dropout is between the two halves."""

    def __init__(self, dim, norm_layer, padding_type="reflect", use_dropout=False):
        super(ResnetBlock, self).__init__()
        bias = needs_bias(norm_layer)
        pads = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "zero": None}
        conv_block = []
        for half in range(2):
            pad, p = pads[padding_type], 1
            if pad is not None:
                conv_block += [pad(1)]
                p = 0
            conv_block += [nn.Conv2d(dim, dim, kernel_size=3, padding=p, bias=bias), norm_layer(dim)]
            if half == 0:
                conv_block += [nn.ReLU(True)]
                if use_dropout:
                    conv_block += [nn.Dropout(0.5)]
        self.conv_block = nn.Sequential(*conv_block)

    def forward(self, x):
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    def __init__(
        self, in_nc, out_nc, ngf=64, norm_layer=nn.BatchNorm2d, n_blocks=6, padding_type="reflect", use_dropout=False
    ):
        super(ResnetGenerator, self).__init__()
        bias = needs_bias(norm_layer)
        model = [nn.ReflectionPad2d(3), nn.Conv2d(in_nc, ngf, kernel_size=7, bias=bias), norm_layer(ngf), nn.ReLU(True)]

        dim = ngf
        for _ in range(2):
            model += [nn.Conv2d(dim, dim * 2, 3, stride=2, padding=1, bias=bias), norm_layer(dim * 2), nn.ReLU(True)]
            dim *= 2
        for _ in range(n_blocks):
            model += [ResnetBlock(dim, norm_layer, padding_type, use_dropout)]
        for _ in range(2):
            model += [
                nn.ConvTranspose2d(dim, dim // 2, 3, stride=2, padding=1, output_padding=1, bias=bias),
                norm_layer(dim // 2),
                nn.ReLU(True),
            ]
            dim //= 2

        model += [nn.ReflectionPad2d(3), nn.Conv2d(dim, out_nc, kernel_size=7), nn.Tanh()]
        self.model = nn.Sequential(*model)

    def forward(self, input):
        return self.model(input)


class UnetSkipConnectionBlock(nn.Module):
    """A downsampling and an upsampling step around a submodule, concatenated with the input."""

    def __init__(self, outer_nc, inner_nc, input_nc=None, submodule=None, norm_layer=nn.BatchNorm2d, dropout=False):
        super(UnetSkipConnectionBlock, self).__init__()
        self.outermost = input_nc is not None
        innermost = submodule is None
        bias = needs_bias(norm_layer)
        downconv = nn.Conv2d(input_nc or outer_nc, inner_nc, 4, stride=2, padding=1, bias=bias)
        # In place: the skip connection concatenates the activated input.
        downrelu = nn.LeakyReLU(0.2, True)
        uprelu = nn.ReLU(True)
        upconv = nn.ConvTranspose2d(
            inner_nc if innermost else inner_nc * 2, outer_nc, 4, stride=2, padding=1, bias=bias or self.outermost
        )
        if self.outermost:
            model = [downconv, submodule, uprelu, upconv, nn.Tanh()]
        elif innermost:
            model = [downrelu, downconv, uprelu, upconv, norm_layer(outer_nc)]
        else:
            model = [downrelu, downconv, norm_layer(inner_nc), submodule, uprelu, upconv, norm_layer(outer_nc)]
            if dropout:
                model += [nn.Dropout(0.5)]
        self.model = nn.Sequential(*model)

    def forward(self, x):
        if self.outermost:
            return self.model(x)
        return torch.cat([x, self.model(x)], 1)


class UnetGenerator(nn.Module):
    """Nests the blocks from the innermost one outwards."""

    def __init__(self, input_nc, output_nc, num_downs, ngf=64, norm_layer=nn.BatchNorm2d, use_dropout=False):
        super(UnetGenerator, self).__init__()
        block = UnetSkipConnectionBlock(ngf * 8, ngf * 8, norm_layer=norm_layer)
        for _ in range(num_downs - 5):
            block = UnetSkipConnectionBlock(
                ngf * 8, ngf * 8, submodule=block, norm_layer=norm_layer, dropout=use_dropout
            )
        for mult in (4, 2, 1):
            block = UnetSkipConnectionBlock(ngf * mult, ngf * mult * 2, submodule=block, norm_layer=norm_layer)
        self.model = UnetSkipConnectionBlock(output_nc, ngf, input_nc, submodule=block, norm_layer=norm_layer)

    def forward(self, input):
        return self.model(input)


class NLayerDiscriminator(nn.Module):
    """A PatchGAN, which returns logits of overlapping patches."""

    def __init__(self, input_nc, ndf=64, n_layers=3, norm_layer=nn.BatchNorm2d):
        super(NLayerDiscriminator, self).__init__()
        bias = needs_bias(norm_layer)
        kw, padw = 4, 1
        sequence = [nn.Conv2d(input_nc, ndf, kernel_size=kw, stride=2, padding=padw), nn.LeakyReLU(0.2, True)]
        nf = ndf
        for n in range(1, n_layers + 1):
            nf_prev, nf = nf, ndf * min(2**n, 8)
            stride = 2 if n < n_layers else 1
            sequence += [
                nn.Conv2d(nf_prev, nf, kernel_size=kw, stride=stride, padding=padw, bias=bias),
                norm_layer(nf),
                nn.LeakyReLU(0.2, True),
            ]
        sequence += [nn.Conv2d(nf, 1, kernel_size=kw, stride=1, padding=padw)]
        self.model = nn.Sequential(*sequence)

    def forward(self, input):
        return self.model(input)


class PairDiscriminator(nn.Module):
    """Takes a condition and an image; pads on two sides only; instance norm has its defaults."""

    def __init__(self, in_channels=3, nf=64):
        super().__init__()

        def discriminator_block(in_filters, out_filters, normalization=True):
            layers = [nn.Conv2d(in_filters, out_filters, 4, stride=2, padding=1)]
            if normalization:
                layers.append(nn.InstanceNorm2d(out_filters))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            return layers

        self.model = nn.Sequential(
            *discriminator_block(in_channels * 2, nf, normalization=False),
            *discriminator_block(nf, nf * 2),
            *discriminator_block(nf * 2, nf * 4),
            nn.ZeroPad2d((1, 0, 1, 0)),
            nn.Conv2d(nf * 4, 1, 4, padding=1, bias=False),
        )

    def forward(self, img_a, img_b):
        return self.model(torch.cat((img_a, img_b), 1))


class MultiscaleDiscriminator(nn.Module):
    """PatchGANs on several image scales, each returning the features of every stage."""

    def __init__(self, input_nc, ndf=64, n_layers=3, norm_layer=nn.BatchNorm2d, num_D=3):
        super().__init__()
        self.num_D, self.n_stages = num_D, n_layers + 2
        for scale in range(num_D):
            for number, stage in enumerate(self.make_stages(input_nc, ndf, n_layers, norm_layer)):
                setattr(self, f"scale{scale}_layer{number}", nn.Sequential(*stage))
        self.downsample = nn.AvgPool2d(3, stride=2, padding=[1, 1], count_include_pad=False)

    @staticmethod
    def make_stages(nc, nf, n_layers, norm_layer):
        yield nn.Conv2d(nc, nf, 4, stride=2, padding=2), nn.LeakyReLU(0.2, True)
        for n in range(1, n_layers + 1):
            stride = 2 if n < n_layers else 1
            yield nn.Conv2d(nf, nf * 2, 4, stride=stride, padding=2), norm_layer(nf * 2), nn.LeakyReLU(0.2, True)
            nf *= 2
        yield (nn.Conv2d(nf, 1, 4, stride=1, padding=2),)

    def forward(self, input):
        result = []
        for scale in range(self.num_D):
            if scale > 0:
                input = self.downsample(input)
            features = [input]
            for number in range(self.n_stages):
                features.append(getattr(self, f"scale{scale}_layer{number}")(features[-1]))
            result.append(features[1:])
        return result
