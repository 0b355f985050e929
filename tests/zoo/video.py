"""Video GANs: VGAN's two streams with a mask, a 3-d critic, and TGAN's temporal and image generators."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class VideoGenerator(nn.Module):
    """Blends a moving foreground with a static background by a mask."""

    def __init__(self, z_dim=100, ngf=64):
        super(VideoGenerator, self).__init__()

        def block3d(in_ch, out_ch, kernel=4, stride=2, pad=1):
            return nn.Sequential(
                nn.ConvTranspose3d(in_ch, out_ch, kernel, stride, pad, bias=False),
                nn.BatchNorm3d(out_ch),
                nn.ReLU(inplace=True),
            )

        def block2d(in_ch, out_ch, stride=2, pad=1):
            return nn.Sequential(
                nn.ConvTranspose2d(in_ch, out_ch, 4, stride, pad, bias=False),
                nn.BatchNorm2d(out_ch),
                nn.ReLU(inplace=True),
            )

        self.foreground = nn.Sequential(
            block3d(z_dim, ngf * 4, (2, 4, 4), (1, 1, 1), (0, 0, 0)),
            block3d(ngf * 4, ngf * 2),
            block3d(ngf * 2, ngf),
        )
        self.video = nn.Sequential(nn.ConvTranspose3d(ngf, 3, 4, 2, 1), nn.Tanh())
        self.mask = nn.Sequential(nn.ConvTranspose3d(ngf, 1, 4, 2, 1), nn.Sigmoid())
        self.background = nn.Sequential(
            block2d(z_dim, ngf * 4, 1, 0),
            block2d(ngf * 4, ngf * 2),
            block2d(ngf * 2, ngf),
            nn.ConvTranspose2d(ngf, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z):
        fg = self.foreground(z.view(z.size(0), z.size(1), 1, 1, 1))
        mask = self.mask(fg)
        fg = self.video(fg)
        bg = self.background(z.view(z.size(0), z.size(1), 1, 1)).unsqueeze(2).expand_as(fg)
        return mask * fg + (1 - mask) * bg, mask


class VideoDiscriminator(nn.Module):
    def __init__(self, ndf=64, channels=3):
        super(VideoDiscriminator, self).__init__()
        self.conv1 = nn.Conv3d(channels, ndf, 4, 2, 1)
        self.conv2 = nn.Conv3d(ndf, ndf * 2, 4, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(ndf * 2)
        self.conv3 = nn.Conv3d(ndf * 2, ndf * 4, 4, 2, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(ndf * 4)
        self.head = nn.Conv3d(ndf * 4, 1, (2, 4, 4), 1, 0)

    def forward(self, x):
        x = F.leaky_relu(self.conv1(x), 0.2, True)
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2, True)
        x = F.leaky_relu(self.bn3(self.conv3(x)), 0.2, True)
        return self.head(x).squeeze()


class TemporalGenerator(nn.Module):
    """A 1-d network makes a code per frame, and a 2-d network generates all frames as one batch (TGAN)."""

    def __init__(self, z_dim=100, ngf=64):
        super().__init__()
        self.temporal = nn.Sequential(
            nn.ConvTranspose1d(z_dim, ngf * 4, 1, 1, 0),
            nn.BatchNorm1d(ngf * 4),
            nn.ReLU(),
            nn.ConvTranspose1d(ngf * 4, ngf * 2, 4, 2, 1),
            nn.BatchNorm1d(ngf * 2),
            nn.ReLU(),
            nn.ConvTranspose1d(ngf * 2, z_dim, 4, 2, 1),
            nn.Tanh(),
        )
        self.fast = nn.Sequential(nn.ConvTranspose2d(z_dim, ngf * 4, 4, 1, 0, bias=False), nn.BatchNorm2d(ngf * 4))
        self.slow = nn.Sequential(nn.ConvTranspose2d(z_dim, ngf * 4, 4, 1, 0, bias=False), nn.BatchNorm2d(ngf * 4))
        self.main = nn.Sequential(
            nn.ConvTranspose2d(ngf * 8, ngf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, ngf, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z):
        n, d = z.shape
        z_fast = self.temporal(z.unsqueeze(-1)).permute(0, 2, 1).contiguous()
        frames = z_fast.size(1)
        z_fast = z_fast.view(n * frames, d, 1, 1)
        z_slow = z.unsqueeze(1).repeat(1, frames, 1).view(n * frames, d, 1, 1)
        out = torch.cat([F.relu(self.fast(z_fast)), F.relu(self.slow(z_slow))], dim=1)
        out = self.main(out)
        return out.view(n, frames, 3, out.size(2), out.size(3)).transpose(1, 2)
