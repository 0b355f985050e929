"""Ops with the signatures of ``torch.nn.functional``; differentiable to second order and beyond."""

from gan_fast.ops.batch_norm_act import batch_norm_act
from gan_fast.ops.conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from gan_fast.ops.conv_bn_act import (
    conv1d_act,
    conv1d_bn_act,
    conv2d_act,
    conv2d_bn_act,
    conv3d_act,
    conv3d_bn_act,
    conv_transpose1d_act,
    conv_transpose1d_bn_act,
    conv_transpose2d_act,
    conv_transpose2d_bn_act,
    conv_transpose3d_act,
    conv_transpose3d_bn_act,
)
from gan_fast.ops.feature_matching_loss import feature_matching_loss
from gan_fast.ops.instance_norm_act import instance_norm_act
from gan_fast.ops.leaky_relu import leaky_relu
from gan_fast.ops.minibatch_discrimination import minibatch_discrimination
from gan_fast.ops.minibatch_stddev import minibatch_stddev
from gan_fast.ops.minimax_loss import minimax_d_loss, minimax_d_loss_and_means, minimax_g_loss
from gan_fast.ops.spectral_norm import spectral_norm

__all__ = [
    "batch_norm_act",
    "conv1d",
    "conv1d_act",
    "conv1d_bn_act",
    "conv2d",
    "conv2d_act",
    "conv2d_bn_act",
    "conv3d",
    "conv3d_act",
    "conv3d_bn_act",
    "conv_transpose1d",
    "conv_transpose1d_act",
    "conv_transpose1d_bn_act",
    "conv_transpose2d",
    "conv_transpose2d_act",
    "conv_transpose2d_bn_act",
    "conv_transpose3d",
    "conv_transpose3d_act",
    "conv_transpose3d_bn_act",
    "feature_matching_loss",
    "instance_norm_act",
    "leaky_relu",
    "minibatch_discrimination",
    "minibatch_stddev",
    "minimax_d_loss",
    "minimax_d_loss_and_means",
    "minimax_g_loss",
    "spectral_norm",
]
