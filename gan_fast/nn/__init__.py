"""Drop-in modules with the signatures of ``torch.nn``, and blocks that run several layers as one op.

>>> import torch
>>> from gan_fast import nn
>>> critic = torch.nn.Sequential(nn.ConvAct2d(3, 8, 4, 2, 1), nn.ConvBNAct2d(8, 16, 4, 2, 1), torch.nn.Flatten())
>>> critic(torch.randn(2, 3, 16, 16)).shape
torch.Size([2, 256])
"""

from gan_fast.nn.batch_norm_act import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from gan_fast.nn.channels_last import ChannelsLastSequential
from gan_fast.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from gan_fast.nn.conv_bn_act import (
    ConvAct1d,
    ConvAct2d,
    ConvAct3d,
    ConvBNAct1d,
    ConvBNAct2d,
    ConvBNAct3d,
    ConvTransposeAct1d,
    ConvTransposeAct2d,
    ConvTransposeAct3d,
    ConvTransposeBNAct1d,
    ConvTransposeBNAct2d,
    ConvTransposeBNAct3d,
)
from gan_fast.nn.instance_norm_act import InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d
from gan_fast.nn.minibatch import MinibatchDiscrimination, MinibatchStdDev
from gan_fast.nn.rectifiers import LeakyReLU, ReLU
from gan_fast.nn.spectral_norm import remove_spectral_norm, spectral_norm

__all__ = [
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "ChannelsLastSequential",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvAct1d",
    "ConvAct2d",
    "ConvAct3d",
    "ConvBNAct1d",
    "ConvBNAct2d",
    "ConvBNAct3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "ConvTransposeAct1d",
    "ConvTransposeAct2d",
    "ConvTransposeAct3d",
    "ConvTransposeBNAct1d",
    "ConvTransposeBNAct2d",
    "ConvTransposeBNAct3d",
    "InstanceNormAct1d",
    "InstanceNormAct2d",
    "InstanceNormAct3d",
    "LeakyReLU",
    "MinibatchDiscrimination",
    "MinibatchStdDev",
    "ReLU",
    "remove_spectral_norm",
    "spectral_norm",
]
