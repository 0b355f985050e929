"""Spectral normalisation of every convolution and linear layer of a model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gan_fast import ops

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class _SpectralNorm(parametrizations._SpectralNorm):
    """torch's parametrisation (buffers, first iterations, state dict) on our op."""

    def forward(self, weight: Tensor) -> Tensor:
        iterations = self.n_power_iterations if self.training else 0
        return ops.spectral_norm(weight, self._u, self._v, iterations, self.eps, self.dim)


def _normalizes(layer: nn.Module) -> bool:
    """Whether spectral norm, torch's or ours, is among the parametrisations of a layer's weight."""
    return parametrize.is_parametrized(layer, "weight") and any(
        isinstance(p, parametrizations._SpectralNorm)
        for p in layer.parametrizations["weight"]  # type: ignore[index]
    )


def _layers(owner: str, module: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{owner}: expected module type Module, got {type(module).__name__}")
    return {name or "itself": m for name, m in module.named_modules() if isinstance(m, _LAYERS)}


def spectral_norm(module: nn.Module, n_power_iterations: int = 1, eps: float = 1e-12) -> nn.Module:
    """Apply spectral normalisation, in place, to every convolution and linear layer of a model, or to one layer.

    Args:
        module: a model or a layer. Layers that spectral norm, torch's or ours, normalises already are left as they are.
        n_power_iterations: at every forward in training, at least 1.
        eps: lower bound of the norms that are divided by.

    Returns:
        ``module``.

    Raises:
        TypeError: not a module.
        ValueError: a number out of range, no such layer, or one whose weight is not a parameter with a shape. Nothing
            has changed then.

    Notes:
        ``torch.nn.utils.parametrizations.spectral_norm`` of each layer, with its values and the keys of its state dict
        (``parametrizations.weight.original``, ``parametrizations.weight.0._u``, ``._v``), on
        :func:`gan_fast.ops.spectral_norm`. Parameters stay the same objects: an optimizer made before goes on.
        Blocks of :mod:`gan_fast.nn` keep their fused path.

    Source: Miyato et al., 2018 (arXiv 1802.05957).
    """
    if isinstance(n_power_iterations, bool) or not isinstance(n_power_iterations, int):
        raise TypeError(f"spectral_norm: expected n_power_iterations type int, got {type(n_power_iterations).__name__}")
    if n_power_iterations < 1:
        raise ValueError(f"spectral_norm: expected n_power_iterations at least 1, got {n_power_iterations}")
    layers = _layers("spectral_norm", module)
    if not layers:
        raise ValueError("spectral_norm: expected module with a convolution or linear layer, got none")
    weights = {}
    for name, layer in layers.items():
        if _normalizes(layer):
            continue
        if "weight" not in layer._parameters and not parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"spectral_norm: expected weight of {name} a parameter, got one that a hook computes")
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if nn.parameter.is_lazy(weight):
            raise ValueError(f"spectral_norm: expected weight of {name} with a shape, got a lazy layer's")
        weights[layer] = weight
    for layer, weight in weights.items():
        dim = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
        parametrize.register_parametrization(layer, "weight", _SpectralNorm(weight, n_power_iterations, dim, eps))
    return module


def remove_spectral_norm(module: nn.Module) -> nn.Module:
    """Take spectral normalisation away, in place; weights keep the normalised values that evaluation has.

    Args:
        module: a model or a layer; layers without it are left as they are.

    Returns:
        ``module``.

    Raises:
        TypeError: not a module.
        ValueError: a weight with other parametrisations beside it, which torch removes only together. Nothing has
            changed then.
    """
    layers = {name: m for name, m in _layers("remove_spectral_norm", module).items() if _normalizes(m)}
    for name, layer in layers.items():
        count = len(layer.parametrizations["weight"])  # type: ignore[index]
        if count > 1:
            raise ValueError(
                f"remove_spectral_norm: expected weight of {name} with no parametrisation beside it, got {count - 1}"
            )
    for layer in layers.values():
        # The value is taken without an iteration more.
        layer.parametrizations["weight"].eval()  # type: ignore[index, union-attr]
        parametrize.remove_parametrizations(layer, "weight")
    return module
