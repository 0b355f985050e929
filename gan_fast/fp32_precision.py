"""Read and set the precision in which torch computes float32 products (full, TF32 or bfloat16).

torch has two interfaces to these settings. The getters of the older one (``allow_tf32``,
``get_float32_matmul_precision``) raise if the two disagree. So gan_fast uses only the newer one (``fp32_precision``),
which also reads values set through the older. It calls the private functions behind the public properties, because the
setter of ``torch.backends.mkldnn`` writes a different setting than its getter reads, and the others raise after
``torch.backends.disable_global_flags``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_get = torch._C._get_fp32_precision_getter
_set = torch._C._set_fp32_precision_setter

# Parents come first: an unset op inherits from "all" of its backend, and an unset "all" from the generic setting.
_SETTINGS = (
    ("generic", "all"),
    *((backend, op) for backend in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")),
)


def of(backend: str, op: str) -> str:
    """Return the precision in effect for an op ("conv", "matmul") of a backend: "ieee", "tf32", "bf16" or "none"."""
    precision: str = _get(backend, op)
    return precision


def current() -> tuple[str, ...]:
    """Return all settings, as a value to compare later."""
    return tuple(_get(*setting) for setting in _SETTINGS)


@contextmanager
def full() -> Iterator[None]:
    """Compute float32 products in full float32 inside the ``with`` block, in the whole process."""
    changed = []
    try:
        for setting in _SETTINGS:
            before = _get(*setting)
            # A setting that inherits reads "ieee" by now; leave it. No getter tells an inherited value from a set one.
            if before != "ieee":
                _set(*setting, "ieee")
                changed.append((setting, before))
        yield
    finally:
        for setting, before in reversed(changed):
            _set(*setting, before)
