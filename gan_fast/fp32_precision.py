"""How torch computes float32 products: its settings for each backend and kind of op.

torch has two interfaces to them. Getters of the older one (``allow_tf32``, ``get_float32_matmul_precision``) raise once
the two disagree, so that gan_fast reads and writes through the newer one (``fp32_precision``) alone. That one knows
values set through either. The private functions are the ones behind its properties: the public setter of
``torch.backends.mkldnn`` writes another setting than its getter reads, and the others refuse after
``torch.backends.disable_global_flags``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_get = torch._C._get_fp32_precision_getter
_set = torch._C._set_fp32_precision_setter

# A setting without a value of its own reads as "all" of its backend, and that as the generic one: parents come first.
_SETTINGS = (
    ("generic", "all"),
    *((backend, op) for backend in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")),
)


def of(backend: str, op: str) -> str:
    """Return "ieee", "tf32", "bf16" or "none", as it takes effect for an op ("conv", "matmul") of a backend."""
    precision: str = _get(backend, op)
    return precision


def current() -> tuple[str, ...]:
    """Return all settings, to be compared with those of another time."""
    return tuple(_get(*setting) for setting in _SETTINGS)


@contextmanager
def full() -> Iterator[None]:
    """Compute float32 products in float32 inside the ``with`` block, of the whole process."""
    changed = []
    try:
        for setting in _SETTINGS:
            before = _get(*setting)
            # What inherits reads "ieee" by now. It is left alone, since no getter tells it from what was set.
            if before != "ieee":
                _set(*setting, "ieee")
                changed.append((setting, before))
        yield
    finally:
        for setting, before in reversed(changed):
            _set(*setting, before)
