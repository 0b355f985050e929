"""Spectral normalization of a layer or of a whole model.

>>> import torch
>>> from gan_fast.nn import spectral_norm
>>> critic = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4), torch.nn.LeakyReLU(0.2), torch.nn.Conv2d(8, 1, 4))
>>> list(spectral_norm(critic).state_dict())[:2]
['0.bias', '0.parametrizations.weight.original']
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gan_fast import ops
from gan_fast.ops import checks

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class _SpectralNorm(parametrizations._SpectralNorm):
    """torch's parametrization (buffers, initial iterations, state dict) on gan_fast's op."""

    def forward(self, weight: Tensor) -> Tensor:
        if weight.dim() < 2 or weight.dtype not in checks.FLOATING:
            return super().forward(weight)
        iterations = self.n_power_iterations if self.training else 0
        return ops.spectral_norm(weight, self._u, self._v, iterations, self.eps, self.dim)


def _has_spectral_norm(layer: nn.Module, name: str) -> bool:
    """Whether torch's or gan_fast's spectral norm is among the parametrizations of a layer's tensor."""
    return parametrize.is_parametrized(layer, name) and any(
        isinstance(p, parametrizations._SpectralNorm)
        for p in layer.parametrizations[name]  # type: ignore[index]
    )


def _has_tensor(module: nn.Module, name: str) -> bool:
    # getattr would compute a parametrized tensor, and spectral norm would iterate.
    return (
        module._parameters.get(name) is not None
        or module._buffers.get(name) is not None
        or parametrize.is_parametrized(module, name)
        or isinstance(vars(module).get(name), Tensor)
    )


def _find_layers(op: str, module: Any, name: str) -> dict[str, nn.Module]:
    """The module itself if it has the tensor, else the convolution and linear layers below that have it."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{op}: expected module type Module, got {type(module).__name__}")
    if _has_tensor(module, name):
        return {type(module).__name__: module}
    return {f"layer {path}": m for path, m in module.named_modules() if isinstance(m, _LAYERS) and _has_tensor(m, name)}


def spectral_norm(
    module: nn.Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> nn.Module:
    """Divide a layer's weight, or every weight of a model, by its largest singular value at each forward, in place.

    A module that has a tensor ``name`` is one layer: the call does what
    ``torch.nn.utils.parametrizations.spectral_norm`` does. Any other module is a container: the call applies to every
    convolution and linear layer in it that has a tensor ``name``.

    Args:
        module: a layer or a model. Tensors that have spectral norm already, torch's or gan_fast's, are left unchanged.
        name: the tensor to normalize.
        n_power_iterations: power iterations per forward in training, at least 1.
        eps: lower bound of the norms that power iteration divides by.
        dim: the output dimension of the weight. None: 1 for transposed convolutions, 0 for all others.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is not a module, or ``n_power_iterations`` is not an integer.
        IndexError: ``dim`` is not a dimension of a weight.
        ValueError: ``n_power_iterations`` below 1, no such tensor, or one without a shape (a lazy layer's) or computed
            by a hook (``torch.nn.utils.spectral_norm``). After an error the module is unchanged.

    Notes:
        State dict keys are torch's: ``parametrizations.weight.original``, ``parametrizations.weight.0._u`` and ``._v``.
        Parameters stay the same objects, so an existing optimizer remains valid. Blocks of :mod:`gan_fast.nn` stay
        fused. The op is :func:`gan_fast.ops.spectral_norm`.

    Source: Miyato et al., 2018 (arXiv 1802.05957).
    """
    if isinstance(n_power_iterations, bool) or not isinstance(n_power_iterations, int):
        raise TypeError(f"spectral_norm: expected n_power_iterations type int, got {type(n_power_iterations).__name__}")
    if n_power_iterations < 1:
        raise ValueError(f"spectral_norm: expected n_power_iterations at least 1, got {n_power_iterations}")
    layers = _find_layers("spectral_norm", module, name)
    if not layers:
        raise ValueError(
            f"spectral_norm: expected module with a tensor {name!r}, or with convolution or linear layers that have "
            f"one, got {type(module).__name__}"
        )
    norms = {}
    for where, layer in layers.items():
        if _has_spectral_norm(layer, name):
            continue
        if name in vars(layer):
            raise ValueError(
                f"spectral_norm: expected {name} of {where} to be a parameter, got a tensor that a hook computes; "
                "remove torch.nn.utils.spectral_norm or weight_norm first"
            )
        tensor = getattr(layer, name)
        if nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"spectral_norm: expected {name} of {where} to have a shape, got a lazy layer; run the model once first"
            )
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        norms[layer] = _SpectralNorm(tensor, n_power_iterations, int(transposed) if dim is None else dim, eps)
    for layer, norm in norms.items():
        parametrize.register_parametrization(layer, name, norm)
    return module


def remove_spectral_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    """Remove spectral normalization in place; weights keep the normalized values that evaluation uses.

    Args:
        module: a layer or a model. Layers without spectral norm are left unchanged.
        name: the normalized tensor.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is not a module.
        ValueError: a tensor has other parametrizations too, which torch removes only together. The module is unchanged.
    """
    layers = _find_layers("remove_spectral_norm", module, name)
    layers = {where: layer for where, layer in layers.items() if _has_spectral_norm(layer, name)}
    for where, layer in layers.items():
        count = len(layer.parametrizations[name])  # type: ignore[index]
        if count > 1:
            raise ValueError(
                f"remove_spectral_norm: expected {name} of {where} to have no other parametrization, "
                f"got {count - 1} more"
            )
    for layer in layers.values():
        # Removal computes the weight once more, which in training mode would run a power iteration.
        layer.parametrizations[name].eval()  # type: ignore[index, union-attr]
        parametrize.remove_parametrizations(layer, name)
    return module
