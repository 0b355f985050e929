"""Fused ops with the signatures of ``torch.nn.functional``; differentiable to second order and beyond."""

from gan_fast.ops.batch_norm_act import batch_norm_act
from gan_fast.ops.minimax_loss import minimax_d_loss, minimax_d_loss_and_means, minimax_g_loss

__all__ = ["batch_norm_act", "minimax_d_loss", "minimax_d_loss_and_means", "minimax_g_loss"]
