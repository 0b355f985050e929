"""DCGAN in the styles of PyTorch's example (one Sequential, ngpu, initialization by class name) and of WGAN's code."""

import torch
from torch import nn


def weights_init(m):
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        torch.nn.init.normal_(m.weight, 0.0, 0.02)
    elif classname.find("BatchNorm") != -1:
        torch.nn.init.normal_(m.weight, 1.0, 0.02)
        torch.nn.init.zeros_(m.bias)


class Generator(nn.Module):
    def __init__(self, ngpu, nz, ngf, nc):
        super(Generator, self).__init__()
        self.ngpu = ngpu
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 8, 4, 1, 0, bias=False),
            nn.BatchNorm2d(ngf * 8),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 8, ngf * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 4, ngf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, ngf, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, input):
        if input.is_cuda and self.ngpu > 1:
            output = nn.parallel.data_parallel(self.main, input, range(self.ngpu))
        else:
            output = self.main(input)
        return output


class Discriminator(nn.Module):
    def __init__(self, ngpu, ndf, nc):
        super(Discriminator, self).__init__()
        self.ngpu = ngpu
        self.main = nn.Sequential(
            nn.Conv2d(nc, ndf, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, ndf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 2, ndf * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * 4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 4, ndf * 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * 8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, input):
        if input.is_cuda and self.ngpu > 1:
            output = nn.parallel.data_parallel(self.main, input, range(self.ngpu))
        else:
            output = self.main(input)
        return output.view(-1, 1).squeeze(1)


class NamedGenerator(nn.Module):
    """Adds layers to a Sequential one at a time, with names that contain their sizes."""

    def __init__(self, isize, nz, nc, ngf, ngpu, n_extra_layers=0):
        super(NamedGenerator, self).__init__()
        self.ngpu = ngpu
        assert isize % 16 == 0, "isize has to be a multiple of 16"
        main = nn.Sequential()

        def block(name, conv, nf):
            main.add_module(f"{name}:conv", conv)
            main.add_module(f"{name}:batchnorm", nn.BatchNorm2d(nf))
            main.add_module(f"{name}:relu", nn.ReLU(True))

        nf = ngf * isize // 8
        block(f"initial:{nz}-{nf}", nn.ConvTranspose2d(nz, nf, 4, 1, 0, bias=False), nf)
        while nf > ngf:
            block(f"pyramid:{nf}-{nf // 2}", nn.ConvTranspose2d(nf, nf // 2, 4, 2, 1, bias=False), nf // 2)
            nf = nf // 2
        for t in range(n_extra_layers):
            block(f"extra-layers-{t}:{nf}", nn.Conv2d(nf, nf, 3, 1, 1, bias=False), nf)
        main.add_module(f"final:{nf}-{nc}:convt", nn.ConvTranspose2d(nf, nc, 4, 2, 1, bias=False))
        main.add_module(f"final:{nc}:tanh", nn.Tanh())
        self.main = main

    def forward(self, input):
        if isinstance(input.data, torch.cuda.FloatTensor) and self.ngpu > 1:
            output = nn.parallel.data_parallel(self.main, input, range(self.ngpu))
        else:
            output = self.main(input)
        return output


class NamedCritic(nn.Module):
    """Returns the mean score of the batch, which is WGAN's loss."""

    def __init__(self, isize, nc, ndf, ngpu, n_extra_layers=0):
        super(NamedCritic, self).__init__()
        self.ngpu = ngpu
        assert isize % 16 == 0, "isize has to be a multiple of 16"
        main = nn.Sequential()
        main.add_module(f"initial:{nc}-{ndf}:conv", nn.Conv2d(nc, ndf, 4, 2, 1, bias=False))
        main.add_module(f"initial:{ndf}:relu", nn.LeakyReLU(0.2, inplace=True))

        def block(name, conv, nf):
            main.add_module(f"{name}:conv", conv)
            main.add_module(f"{name}:batchnorm", nn.BatchNorm2d(nf))
            main.add_module(f"{name}:relu", nn.LeakyReLU(0.2, inplace=True))

        nf, size = ndf, isize / 2
        for t in range(n_extra_layers):
            block(f"extra-layers-{t}:{nf}", nn.Conv2d(nf, nf, 3, 1, 1, bias=False), nf)
        while size > 4:
            block(f"pyramid:{nf}-{nf * 2}", nn.Conv2d(nf, nf * 2, 4, 2, 1, bias=False), nf * 2)
            nf, size = nf * 2, size / 2
        main.add_module(f"final:{nf}-1:conv", nn.Conv2d(nf, 1, 4, 1, 0, bias=False))
        self.main = main

    def forward(self, input):
        if isinstance(input.data, torch.cuda.FloatTensor) and self.ngpu > 1:
            output = nn.parallel.data_parallel(self.main, input, range(self.ngpu))
        else:
            output = self.main(input)
        output = output.mean(0)
        return output.view(1)
