"""Drop-in modules with the signatures of ``torch.nn``."""

from gan_fast.nn.batch_norm_act import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d

__all__ = ["BatchNormAct1d", "BatchNormAct2d", "BatchNormAct3d"]
