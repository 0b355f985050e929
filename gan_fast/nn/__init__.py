"""Drop-in modules with the signatures of ``torch.nn``."""

from gan_fast.nn.batch_norm_act import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from gan_fast.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from gan_fast.nn.leaky_relu import LeakyReLU

__all__ = [
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LeakyReLU",
]
