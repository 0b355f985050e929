"""Class names that weight initializers can match.

DCGAN's and pix2pix's initializers look for "Conv" and "BatchNorm2d" in the ``__name__`` of a module's class. A block
has no weight itself, so its ``__name__`` must not contain "Conv". A norm with an activation has weights, so its
``__name__`` contains the name of torch's norm. ``__qualname__`` is the public name, which imports, pickles and error
messages use.
"""

from __future__ import annotations

from torch import nn


class PublicNameMixin(nn.Module):
    """Print a module under its public name."""

    def _get_name(self) -> str:
        kind = type(self)
        return kind.__qualname__ if kind.__module__.startswith("gan_fast.") else kind.__name__
