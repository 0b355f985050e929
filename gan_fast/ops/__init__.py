"""Functional ops with the signatures of ``torch.nn.functional``, differentiable to second order or higher.

>>> import torch
>>> from gan_fast import ops
>>> x = torch.tensor([-1.0, 3.0], requires_grad=True)
>>> (slope,) = torch.autograd.grad(ops.leaky_relu(x, 0.2).sum(), x)
>>> slope
tensor([0.2000, 1.0000])
"""

from gan_fast.ops.adversarial_loss import (
    hinge_d_loss,
    hinge_g_loss,
    least_squares_d_loss,
    least_squares_g_loss,
    minimax_d_loss,
    minimax_g_loss,
    relativistic_d_loss,
    relativistic_g_loss,
    wasserstein_d_loss,
    wasserstein_g_loss,
)
from gan_fast.ops.batch_norm_act import batch_norm_act
from gan_fast.ops.checks import ArgumentError, DtypeError
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
from gan_fast.ops.leaky_relu import leaky_relu, relu
from gan_fast.ops.linear import linear
from gan_fast.ops.minibatch_discrimination import minibatch_discrimination
from gan_fast.ops.minibatch_stddev import minibatch_stddev
from gan_fast.ops.noise import add_noise, interpolate_samples, perturb
from gan_fast.ops.penalties import (
    dragan_penalty,
    gradient_penalty,
    logits_and_r1,
    logits_for_both_players,
    r1_penalty,
    r2_penalty,
)
from gan_fast.ops.sample_norm_penalty import sample_norm_penalty
from gan_fast.ops.spectral_norm import spectral_norm

__all__ = [
    "ArgumentError",
    "DtypeError",
    "add_noise",
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
    "dragan_penalty",
    "feature_matching_loss",
    "gradient_penalty",
    "hinge_d_loss",
    "hinge_g_loss",
    "instance_norm_act",
    "interpolate_samples",
    "leaky_relu",
    "least_squares_d_loss",
    "least_squares_g_loss",
    "linear",
    "logits_and_r1",
    "logits_for_both_players",
    "minibatch_discrimination",
    "minibatch_stddev",
    "minimax_d_loss",
    "minimax_g_loss",
    "perturb",
    "r1_penalty",
    "r2_penalty",
    "relativistic_d_loss",
    "relativistic_g_loss",
    "relu",
    "sample_norm_penalty",
    "spectral_norm",
    "wasserstein_d_loss",
    "wasserstein_g_loss",
]
