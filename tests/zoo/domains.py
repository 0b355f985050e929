"""Multi-domain image translation: StarGAN, and MUNIT with adaptive instance norm."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ResidualBlock(nn.Module):
    def __init__(self, dim):
        super(ResidualBlock, self).__init__()
        self.main = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size=3, stride=1, padding=1, bias=False),
            nn.InstanceNorm2d(dim, affine=True, track_running_stats=True),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, kernel_size=3, stride=1, padding=1, bias=False),
            nn.InstanceNorm2d(dim, affine=True, track_running_stats=True),
        )

    def forward(self, x):
        return x + self.main(x)


class StarGANGenerator(nn.Module):
    """Concatenates label planes with the image; its instance norms track running statistics."""

    def __init__(self, conv_dim=64, c_dim=5, repeat_num=6):
        super(StarGANGenerator, self).__init__()

        def norm_relu(dim):
            return [nn.InstanceNorm2d(dim, affine=True, track_running_stats=True), nn.ReLU(inplace=True)]

        layers = [nn.Conv2d(3 + c_dim, conv_dim, kernel_size=7, stride=1, padding=3, bias=False), *norm_relu(conv_dim)]
        for mult in (1, 2):
            layers.append(nn.Conv2d(conv_dim * mult, conv_dim * mult * 2, 4, stride=2, padding=1, bias=False))
            layers.extend(norm_relu(conv_dim * mult * 2))
        for _ in range(repeat_num):
            layers.append(ResidualBlock(conv_dim * 4))
        for mult in (4, 2):
            layers.append(nn.ConvTranspose2d(conv_dim * mult, conv_dim * mult // 2, 4, stride=2, padding=1, bias=False))
            layers.extend(norm_relu(conv_dim * mult // 2))
        layers.append(nn.Conv2d(conv_dim, 3, kernel_size=7, stride=1, padding=3, bias=False))
        layers.append(nn.Tanh())
        self.main = nn.Sequential(*layers)

    def forward(self, x, c):
        c = c.view(c.size(0), c.size(1), 1, 1)
        c = c.repeat(1, 1, x.size(2), x.size(3))
        x = torch.cat([x, c], dim=1)
        return self.main(x)


class StarGANDiscriminator(nn.Module):
    """Has no norms; returns patch logits and class logits."""

    def __init__(self, image_size=128, conv_dim=64, c_dim=5, repeat_num=6):
        super(StarGANDiscriminator, self).__init__()
        layers = []
        dim_in, dim_out = 3, conv_dim
        for _ in range(repeat_num):
            layers.append(nn.Conv2d(dim_in, dim_out, kernel_size=4, stride=2, padding=1))
            layers.append(nn.LeakyReLU(0.01))
            dim_in, dim_out = dim_out, dim_out * 2
        self.main = nn.Sequential(*layers)
        self.conv1 = nn.Conv2d(dim_in, 1, kernel_size=3, stride=1, padding=1, bias=False)
        self.conv2 = nn.Conv2d(dim_in, c_dim, kernel_size=image_size // 2**repeat_num, bias=False)

    def forward(self, x):
        h = self.main(x)
        out_src = self.conv1(h)
        out_cls = self.conv2(h)
        return out_src, out_cls.view(out_cls.size(0), out_cls.size(1))


class AdaptiveInstanceNorm2d(nn.Module):
    """F.batch_norm with the batch folded into the channels; the caller assigns weight and bias."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.num_features = num_features
        self.eps, self.momentum = eps, momentum
        self.weight = None
        self.bias = None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        assert self.weight is not None, "AdaIN has no parameters yet"
        b, c, h, w = x.size()
        out = F.batch_norm(
            x.contiguous().view(1, b * c, h, w),
            self.running_mean.repeat(b),
            self.running_var.repeat(b),
            self.weight,
            self.bias,
            True,
            self.momentum,
            self.eps,
        )
        return out.view(b, c, h, w)


class LayerNorm(nn.Module):
    """Normalizes by the mean and standard deviation of each sample, with a scale and a shift per channel."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.Tensor(num_features).uniform_())
        self.beta = nn.Parameter(torch.zeros(num_features))

    def forward(self, x):
        rows = x.reshape(x.size(0), -1)
        mean, std = rows.mean(1).view(-1, 1, 1, 1), rows.std(1).view(-1, 1, 1, 1)
        x = (x - mean) / (std + self.eps)
        return x * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1)


class Conv2dBlock(nn.Module):
    """Padding, convolution, norm and activation chosen by name; the last two may be None."""

    def __init__(self, in_dim, out_dim, ks, st, padding=0, norm="none", activation="relu", pad_type="reflect"):
        super(Conv2dBlock, self).__init__()
        if pad_type == "reflect":
            self.pad = nn.ReflectionPad2d(padding)
        elif pad_type == "zero":
            self.pad = nn.ZeroPad2d(padding)
        else:
            raise AssertionError(f"Unsupported padding type: {pad_type}")

        norms = {"bn": nn.BatchNorm2d, "in": nn.InstanceNorm2d, "ln": LayerNorm, "adain": AdaptiveInstanceNorm2d}
        self.norm = norms[norm](out_dim) if norm != "none" else None

        if activation == "relu":
            self.activation = nn.ReLU(inplace=True)
        elif activation == "lrelu":
            self.activation = nn.LeakyReLU(0.2, inplace=True)
        elif activation == "tanh":
            self.activation = nn.Tanh()
        else:
            self.activation = None

        self.conv = nn.Conv2d(in_dim, out_dim, ks, st)

    def forward(self, x):
        x = self.conv(self.pad(x))
        if self.norm:
            x = self.norm(x)
        if self.activation:
            x = self.activation(x)
        return x


class ResBlock(nn.Module):
    def __init__(self, dim, norm="in"):
        super().__init__()
        self.model = nn.Sequential(
            Conv2dBlock(dim, dim, 3, 1, 1, norm=norm), Conv2dBlock(dim, dim, 3, 1, 1, norm=norm, activation="none")
        )

    def forward(self, x):
        residual = x
        out = self.model(x)
        out += residual
        return out


class MUNITGenerator(nn.Module):
    """Encodes content and style; the style sets the norms of the decoder."""

    def __init__(self, dim=64, style_dim=8, mlp_dim=256, n_downsample=2, n_res=4):
        super().__init__()
        self.enc_style = nn.Sequential(
            Conv2dBlock(3, dim, 7, 1, 3),
            Conv2dBlock(dim, dim * 2, 4, 2, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dim * 2, style_dim, 1),
        )
        content = [Conv2dBlock(3, dim, 7, 1, 3, norm="in")]
        for _ in range(n_downsample):
            content += [Conv2dBlock(dim, dim * 2, 4, 2, 1, norm="in")]
            dim *= 2
        content += [ResBlock(dim) for _ in range(n_res)]
        self.enc_content = nn.Sequential(*content)

        decoder = [ResBlock(dim, norm="adain") for _ in range(n_res)]
        for _ in range(n_downsample):
            decoder += [nn.Upsample(scale_factor=2), Conv2dBlock(dim, dim // 2, 5, 1, 2, norm="ln")]
            dim //= 2
        decoder += [Conv2dBlock(dim, 3, 7, 1, 3, activation="tanh")]
        self.dec = nn.Sequential(*decoder)

        count = sum(2 * m.num_features for m in self.adaptive_norms())
        self.mlp = nn.Sequential(nn.Linear(style_dim, mlp_dim), nn.ReLU(True), nn.Linear(mlp_dim, count))

    def adaptive_norms(self):
        return [m for m in self.dec.modules() if m.__class__.__name__ == "AdaptiveInstanceNorm2d"]

    def assign_adain_params(self, adain_params):
        for m in self.adaptive_norms():
            n = m.num_features
            m.bias = adain_params[:, :n].contiguous().view(-1)
            m.weight = adain_params[:, n : 2 * n].contiguous().view(-1)
            adain_params = adain_params[:, 2 * n :]

    def encode(self, images):
        return self.enc_content(images), self.enc_style(images)

    def decode(self, content, style):
        self.assign_adain_params(self.mlp(style.view(style.size(0), -1)))
        return self.dec(content)

    def forward(self, images):
        content, style = self.encode(images)
        return self.decode(content, style)
