"""The names by which initialisers know modules.

DCGAN's initialiser, pix2pix's and many after them look into the ``__name__`` of a module's class: "Conv" stands for a
convolution with a weight, "BatchNorm2d" for that norm. So the ``__name__`` of a block, whose weights are its
children's, does not say "Conv", and that of a norm with an activation has torch's name in it. Qualified names, which
imports, pickles and errors use, are the public ones.
"""

from __future__ import annotations

from torch import nn


class Named(nn.Module):
    """A module that is printed under its public name."""

    def _get_name(self) -> str:
        kind = type(self)
        return kind.__qualname__ if kind.__module__.startswith("gan_fast.") else kind.__name__
