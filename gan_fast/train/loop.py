"""The adversarial training loop."""

from __future__ import annotations

import collections
import copy
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gan_fast import nn as gan_fast_nn
from gan_fast import ops
from gan_fast.data import DeviceLoader, ImageData
from gan_fast.objectives import InstanceNoise, Penalties, TwoPlayerLosses, clip_weights, make_objective
from gan_fast.train.average import all_finite, average_of, move_average, moving_tensors
from gan_fast.train.buffers import BufferRecord, buffer_dicts, check_initialized
from gan_fast.train.config import ConfigError, TrainConfig
from gan_fast.train.graph import CapturedStep, Subject, graphs_on
from gan_fast.train.optimizers import checked_optimizer, kind_of, moments
from gan_fast.train.step import d_step, g_step, one_stage_step
from gan_fast.train.undo import Kept, storage_of

LOGGED = ("d_loss", "g_loss", "d_real", "d_fake", "d_accuracy", "penalty")
_RESULTS = (*LOGGED, "skipped")
_MODELS = ("generator", "discriminator", "ema_generator")
_OPTIMIZERS = ("g_optimizer", "d_optimizer")

# Drawn at once by `sample`, so that the memory it takes does not grow with the number of images.
_SAMPLE_BATCH = 256


class TrainingDivergedError(RuntimeError):
    """Training cannot go on: gradients or weights have stayed, or become, NaN or infinite."""


class BatchSource(Protocol):
    """Training batches, a pure function of the step: what makes a resumed run see what it would have seen."""

    def batch(self, step: int) -> Tensor:
        """Return the images of a step, (N, C, H, W) in [-1, 1]."""
        ...


class Trainer:
    """Train a generator G against a discriminator D.

    One iteration: ``d_steps`` times, D descends the objective's loss and its penalties on fresh x and z; then G
    descends its own on the last of these z, under the D just updated. With update "one_stage" both descend from one
    pass through the D before. Adam for both; an exponential moving average of G is what samples are drawn from.

    Args:
        config: the algorithm's settings: objective, penalties and regularisers among them.
        generator: maps (N, latent_dim) to (N, C, H, W) in [-1, 1]. Moved to the device, trained in place.
        discriminator: maps (N, C, H, W) to one logit an image. Moved to the device, trained in place; "spectral_norm"
            parametrises its layers. Without batch norm for update "one_stage".
        data: uint8 images (N, C, H, W), an ``ImageData``, or any object with ``batch(step)``; None where only
            :meth:`step` is used.

    Attributes:
        generator, discriminator: G and D.
        ema_generator: the average of G: weights and running statistics, in evaluation mode.
        steps_done: iterations so far.

    Raises:
        TypeError, ValueError: an argument of the wrong type; images smaller in number than a batch; no latent_dim;
            ``cuda_graph`` "on" without a GPU.

    Notes:
        The average: a_t = b_t a_{t-1} + (1 - b_t) w_t with b_t = min(ema_decay, t / (t + 9)), t from 1, over the
        parameters of G and the running statistics of its norms; its other buffers are copied. Early in training it so
        spans about the last tenth of the steps, and the first weights leave no trace.

        An iteration whose gradients are not finite updates nothing, decided on the device: weights, moments and
        buffers stay. D and G skip their updates independently of each other. The host waits for the device only where
        a buffer was added or got another shape in the iteration, which the device cannot undo.

        ``d_optimizer`` and ``g_optimizer`` can be set to any torch optimizer of the model's parameters whose step
        needs no closure. The configuration's rates are those of the Adam that is there before; a scheduler is made
        with, for instance, ``StepLR(trainer.g_optimizer, 1000)`` and stepped by its owner. Those of torch with
        ``fused=True`` skip an update themselves; for any other, parameters and state are copied before each step.
        As part of a CUDA graph they need ``capturable=True`` where they have it.

        Equal seeds, models and data give bit-identical weights on a CPU at an equal number of threads.

        On a GPU an iteration runs as one CUDA graph where ``config.cuda_graph`` and the models allow it, from about the
        fourth on, with the same results. A graph does not see Python: models that change their course there from step
        to step need ``cuda_graph="off"``. docs/architecture.md has what a graph notices by itself.

        The paper draws a z of its own for G's update. Taking the last one saves a forward pass of G, as the common
        DCGAN loops do.

    Source: Goodfellow et al., 2014 (arXiv 1406.2661), algorithm 1.
    """

    def __init__(
        self,
        config: TrainConfig,
        generator: nn.Module,
        discriminator: nn.Module,
        data: Tensor | ImageData | BatchSource | None = None,
    ) -> None:
        self.config = config
        self.device = device_of(config)
        self.latent_dim = _latent_dim(config, generator)
        check_initialized("Trainer: expected generator", generator)
        check_initialized("Trainer: expected discriminator", discriminator)
        self.generator = generator.to(self.device).train()
        self.discriminator = discriminator.to(self.device).train()
        if "spectral_norm" in config.regularizers:
            gan_fast_nn.spectral_norm(self.discriminator)
        self.ema_generator = average_of("Trainer", self.generator)
        self._buffers_made = {name: BufferRecord(getattr(self, name)) for name in _MODELS}
        self.data = self._batch_source(data)
        self.objective = make_objective(config.objective, real_label=config.real_label, fake_label=config.fake_label)
        self.penalties = Penalties(config.penalty, config.penalty_weight, config.penalty_center)
        self._noise = self._make_noise()
        self._feature_weight = self._check_features()
        self._check_update()
        # A graph for each order of updates with and without penalties.
        self._captured_steps = self._make_captured_steps()
        self._reshaped: str | None = None
        self.d_optimizer = self._adam(self.discriminator, config.d_lr, config.d_betas)
        self.g_optimizer = self._adam(self.generator, config.g_lr, config.g_betas)
        self.latent_rng = torch.Generator(self.device).manual_seed(config.seed)
        # Of images and latents: G's own, so that a model in float64 trains as it is.
        self.dtype = next((p.dtype for p in self.generator.parameters() if p.is_floating_point()), torch.float32)
        self.steps_done = 0
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=self.device)
        # A tensor: as a number it would be frozen in a CUDA graph. In double, so that each dtype of G rounds it once.
        self._average_weight = torch.zeros((), dtype=torch.float64, device=self.device)
        self._noise_std = torch.zeros((), dtype=torch.float64, device=self.device)
        self._layout = _layout(self.discriminator)
        self._stop_requested = False

    @property
    def d_optimizer(self) -> torch.optim.Optimizer:
        """D's optimizer: Adam, or what was set in its place."""
        return self._d_optimizer

    @d_optimizer.setter
    def d_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._d_optimizer = checked_optimizer("Trainer.d_optimizer", optimizer, self.discriminator)
        self._forget_graphs()

    @property
    def g_optimizer(self) -> torch.optim.Optimizer:
        """G's optimizer: Adam, or what was set in its place."""
        return self._g_optimizer

    @g_optimizer.setter
    def g_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._g_optimizer = checked_optimizer("Trainer.g_optimizer", optimizer, self.generator)
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        """Drop graphs, and reasons against capturing one: they belong to the optimizer before."""
        if self._captured_steps is not None:
            self._captured_steps.clear()

    def step(self, real: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """Run one iteration: ``d_steps`` updates of D, then one of G.

        Args:
            real: real images (N, C, H, W) in [-1, 1], on any device. One batch serves all ``d_steps`` updates, each
                with fresh latents; a sequence of ``d_steps`` batches gives each update its own, as :meth:`fit` does.

        Returns:
            Scalar tensors on the device, without gradient, new ones at each call: "d_loss" (of the last update of D),
            "g_loss", "d_real" (mean D(x)), "d_fake" (mean D(G(z))), "d_accuracy" (the share of x and G(z) that D tells
            apart; all three before that update), "penalty" (what D paid in that update, weighted; "d_loss" is without
            it), and "skipped" (1 where an update was skipped). D(x) is a probability for "minimax" and
            "non_saturating", else D's output as it is.

        Raises:
            TypeError: a batch is not a tensor, or not of floating point.
            ValueError: a sequence of another length.
            RuntimeError: ``cuda_graph`` is "on" and the step cannot be captured; nothing was done.

        Notes:
            Does not synchronise host and device, but for the one step in which a CUDA graph is captured.
        """
        batches = self._on_device(real)
        step = self.steps_done + 1
        decay = min(self.config.ema_decay, step / (step + 9))
        self._average_weight.fill_(1.0 - decay)
        if self._noise is not None:
            self._noise_std.fill_(self._noise.std_at(self.steps_done))
        scales = self._penalty_scales()
        iterate = functools.partial(self._iterate, scales)
        if self._captured_steps is None:
            values = iterate(batches)
        else:
            values = self._captured_steps[scales](iterate, batches, self._subject())
        self.steps_done = step
        return dict(zip(_RESULTS, values.unbind(), strict=True))

    def _on_device(self, real: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Check the batches and start their way to the device."""
        d_steps = self.config.d_steps
        batches = [real] if isinstance(real, Tensor) else list(real)
        if not isinstance(real, Tensor) and len(batches) != d_steps:
            raise ValueError(f"Trainer.step: expected real d_steps = {d_steps} batches, got {len(batches)}")
        for index, batch in enumerate(batches):
            if not isinstance(batch, Tensor):
                raise TypeError(f"Trainer.step: expected real type Tensor, got {type(batch).__name__}")
            if not batch.is_floating_point():
                raise TypeError(
                    f"Trainer.step: expected real dtype floating point, values in [-1, 1], got {batch.dtype}; "
                    "uint8 images become that by images / 127.5 - 1"
                )
            if self.device.type == "cuda" and batch.is_cpu and not batch.is_pinned():
                # From pageable memory the copy would wait for the device to finish the last step.
                batch = batch.pin_memory()
            batch = batch.detach().to(self.device, non_blocking=True)
            layout = self._layout if batch.dim() == 4 else torch.preserve_format
            batches[index] = batch.to(self.dtype, memory_format=layout)
        return batches * d_steps if isinstance(real, Tensor) else batches

    def _penalty_scales(self) -> tuple[float, ...]:
        """How much the penalties weigh in each of the coming updates of D."""
        every, first = self.config.penalty_every, self.steps_done * self.config.d_steps
        if not self.penalties.names:
            return (0.0,) * self.config.d_steps
        return tuple(float(every) if (first + i) % every == 0 else 0.0 for i in range(self.config.d_steps))

    def _iterate(self, penalty_scales: Sequence[float], batches: Sequence[Tensor]) -> Tensor:
        """Queue one iteration. What differs from one to the next is in tensors, for a CUDA graph to find.

        Returns:
            The values of ``_RESULTS``, in one tensor.
        """
        models = (self.discriminator, self.generator)
        # A buffer that is a view of a parameter needs no copy: a skipped update leaves the parameter.
        kept = Kept(buffer_dicts(*models), {storage_of(p) for model in models for p in model.parameters()})
        objective = TwoPlayerLosses(self.objective, self.penalties, self._feature_weight)
        one_stage = self.config.update == "one_stage"
        skipped = torch.zeros((), device=self.device)
        for index, (batch, scale) in enumerate(zip(batches, penalty_scales, strict=True)):
            # The last images are G's to learn from as well: only they need a graph.
            with torch.set_grad_enabled(index == len(batches) - 1), self._autocast():
                fake = self.generator(self._latents(len(batch)))
            rest = (objective, self._seen(batch), self._seen(fake), self._autocast(), scale, self.latent_rng)
            if one_stage:
                d_loss, g_loss, skip = one_stage_step(self.discriminator, self.d_optimizer, self.g_optimizer, *rest)
            else:
                d_loss, skip = d_step(self.discriminator, self.d_optimizer, *rest)
            skipped = torch.maximum(skipped, skip)
            if "weight_clipping" in self.config.regularizers:
                clip_weights(list(self.discriminator.parameters()), self.config.clip_value)
        if not one_stage:
            real, fake = self._seen(batches[-1]), self._seen(fake)
            g_loss, skip = g_step(self.discriminator, self.g_optimizer, objective, real, fake, self._autocast())
            skipped = torch.maximum(skipped, skip)
        self._finish(kept, skipped)
        return torch.stack((d_loss.loss, g_loss, *d_loss.means.unbind(), d_loss.penalty, skipped))

    def _seen(self, images: Tensor) -> Tensor:
        """The images as D gets to see them."""
        if self._noise is None:
            return images
        return ops.add_noise(images, self._noise_std.to(images.dtype), generator=self.latent_rng)

    @torch.no_grad()
    def _finish(self, kept: Kept, skipped: Tensor) -> None:
        """Undo what a skipped iteration did to the buffers, average G, and count."""
        bad = skipped > 0
        change = kept.undo(bad)
        # Buffers that the first iteration adds stay in the later ones.
        self._reshaped = change if self.steps_done else None
        self.skipped_steps += bad
        self.skipped_in_a_row += 1
        self.skipped_in_a_row *= bad
        move_average(self.ema_generator, self.generator, self._average_weight)

    def fit(
        self,
        on_log: Callable[[dict[str, float]], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> list[dict[str, float]]:
        """Train until ``config.steps`` iterations are done or :meth:`stop` is called.

        Args:
            on_log: called every ``log_every`` steps with a row of "step", the means since the last row of "d_loss",
                "g_loss", "d_real", "d_fake", "d_accuracy" and "penalty", "images_per_s" (real images), "time_s" (of
                this call) and "skipped_steps" (since the training began).
            on_step: called after every iteration with the number of iterations done.

        Returns:
            The rows.

        Raises:
            ValueError: the trainer was made without data.
            TrainingDivergedError: ``max_skipped_steps`` iterations in a row were skipped; noticed when a row is due.
        """
        if self.data is None:
            raise ValueError("Trainer.fit: expected data to train on, got None")
        config, rows = self.config, []
        self._stop_requested = False
        sums, count, images = torch.zeros(len(LOGGED), device=self.device), 0, 0
        started = previous = time.perf_counter()
        while self.steps_done < config.steps and not self._stop_requested:
            first = self.steps_done * config.d_steps
            batches = [self.data.batch(first + i) for i in range(config.d_steps)]
            result = self.step(batches)
            sums += torch.stack([result[name] for name in LOGGED])
            count, images = count + 1, images + sum(map(len, batches))
            if self.steps_done % config.log_every == 0 or self.steps_done == config.steps:
                means = (sums / count).tolist()
                self._check_divergence()
                now = time.perf_counter()
                row: dict[str, float] = {"step": self.steps_done, **dict(zip(LOGGED, means, strict=True))}
                row |= {"images_per_s": images / (now - previous), "time_s": now - started}
                row["skipped_steps"] = int(self.skipped_steps)
                rows.append(row)
                if on_log is not None:
                    on_log(row)
                sums.zero_()
                count, images, previous = 0, 0, time.perf_counter()
            if on_step is not None:
                on_step(self.steps_done)
        return rows

    def stop(self) -> None:
        """Make :meth:`fit` return after the iteration that is running; safe to call from a signal handler."""
        self._stop_requested = True

    def _check_divergence(self) -> None:
        in_a_row = int(self.skipped_in_a_row)
        if in_a_row >= self.config.max_skipped_steps:
            raise TrainingDivergedError(
                f"Trainer: expected finite gradients, got NaN or infinity in the last {in_a_row} steps "
                f"(step {self.steps_done}); lower the learning rate, or use precision fp32"
            )

    @torch.no_grad()
    def sample(self, n: int = 64, *, z: Tensor | None = None, seed: int = 0, ema: bool = True) -> Tensor:
        """Generate images in evaluation mode; training is not disturbed.

        Args:
            n: number of images, at least 1; ignored where ``z`` is given.
            z: latents (n, latent_dim).
            seed: of the latents where ``z`` is None: equal seeds, equal latents.
            ema: from the averaged generator; False: from the current one.

        Returns:
            float (n, C, H, W) in [-1, 1] on the device.

        Raises:
            ValueError: n below 1.
        """
        generator = self.ema_generator if ema else self.generator
        if z is None:
            z = draw_latents(n, self.latent_dim, seed, dtype=self.dtype)
        return generate(generator, z.to(self.device, self.dtype))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed training needs: tensors and plain numbers, safe to load as weights only.

        The position in the data is the step. The global random state is there for models that draw from it (dropout).
        """
        state = {
            "steps_done": self.steps_done,
            **{name: getattr(self, name).state_dict() for name in _MODELS},
            "buffers": {name: made.changes(getattr(self, name)) for name, made in self._buffers_made.items()},
            **{name: getattr(self, name).state_dict()["state"] for name in _OPTIMIZERS},
            "optimizers": {name: kind_of(getattr(self, name)) for name in _OPTIMIZERS},
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "latent_rng": self.latent_rng.get_state(),
            "torch_rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def is_finite(self) -> bool:
        """Tell whether weights, moments and running statistics are finite; waits for the device."""
        tensors = [*moving_tensors(self.discriminator), *moving_tensors(self.generator)]
        tensors += moving_tensors(self.generator, self.ema_generator)
        for optimizer in (self.g_optimizer, self.d_optimizer):
            tensors += [t for t in moments(optimizer) if isinstance(t, Tensor)]
        return all_finite(tensors)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken: N + N steps equal 2N, bit for bit on a CPU.

        Learning rates, betas and all other settings are those of the optimizers here, not the state's. Sets torch's
        global random state.

        Raises:
            KeyError, RuntimeError: the state is of other models or of other kinds of optimizers.
        """
        for name, want in state.get("optimizers", {}).items():
            have = kind_of(getattr(self, name))
            if have != want:
                raise RuntimeError(
                    f"Trainer.load_state_dict: expected {name} of type {want}, as in the state, got {have}; "
                    f"set trainer.{name} before loading"
                )
        for name, made in self._buffers_made.items():
            made.load(getattr(self, name), state[name], state.get("buffers", {}).get(name, {}))
        for name in _OPTIMIZERS:
            optimizer = getattr(self, name)
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state[name], "param_groups": groups})
            _own_moments(optimizer)
        self.skipped_steps.copy_(state["skipped_steps"])
        self.skipped_in_a_row.copy_(state["skipped_in_a_row"])
        self.steps_done = state["steps_done"]
        torch.set_rng_state(state["torch_rng"].cpu())
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        # A generator's state has another form on another kind of device; there the latents start anew.
        if state["latent_rng"].shape == self.latent_rng.get_state().shape:
            self.latent_rng.set_state(state["latent_rng"].cpu())

    def _latents(self, n: int) -> Tensor:
        shape = (n, self.latent_dim)
        return torch.randn(shape, generator=self.latent_rng, device=self.device, dtype=self.dtype)

    def _autocast(self) -> AbstractContextManager:
        # One context for each phase: the casts that it caches without gradients must not reach a phase that needs them.
        wanted = self.config.precision
        enabled = wanted == "bf16" or (wanted == "auto" and self.device.type == "cuda")
        # The outermost context empties the cache; inside one of the caller's, casts of weights would outlive them.
        outermost = not torch.is_autocast_enabled(self.device.type)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=outermost)

    def _adam(self, module: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
        trainable = [p for p in module.parameters() if p.requires_grad]
        if not trainable:
            name = "generator" if module is self.generator else "discriminator"
            raise ValueError(f"Trainer: expected {name} with parameters that require gradients, got none")
        # Fused Adam takes no complex parameters.
        fused = all(p.is_floating_point() for p in trainable)
        adam = torch.optim.Adam(trainable, lr, betas, fused=fused, capturable=self._captured_steps is not None)
        # It would warn of the iterations before the capture.
        adam._warned_capturable_if_run_uncaptured = True
        return adam

    def _make_captured_steps(self) -> dict[tuple[float, ...], CapturedStep] | None:
        wanted = self.config.cuda_graph
        graphs = graphs_on(self.device) if wanted != "off" else None
        if graphs is None:
            return None
        return collections.defaultdict(functools.partial(CapturedStep, graphs, required=wanted == "on"))

    def _make_noise(self) -> InstanceNoise | None:
        config = self.config
        if "instance_noise" not in config.regularizers:
            return None
        return InstanceNoise(config.noise_std, config.noise_steps or config.steps)

    def _check_update(self) -> None:
        norms = [m for m in self.discriminator.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if self.config.update == "one_stage" and norms:
            raise ValueError(
                "Trainer: expected discriminator without batch norm for update one_stage, got one with "
                f"{len(norms)}; DCGANDiscriminator(norm='none'), or --d-norm none, has none"
            )

    def _check_features(self) -> float:
        if "feature_matching" not in self.config.regularizers:
            return 0.0
        if not hasattr(self.discriminator, "forward_with_features"):
            raise ValueError(
                "Trainer: expected discriminator.forward_with_features(images) -> (logits, features) for "
                f"feature_matching, got a {type(self.discriminator).__name__} without it"
            )
        return self.config.feature_weight

    def _subject(self) -> Subject:
        return Subject(
            players=(self.generator, self.discriminator),
            average=self.ema_generator,
            optimizers=(self.g_optimizer, self.d_optimizer),
            objective=self.objective,
            counters=(self.skipped_steps, self.skipped_in_a_row, self._average_weight, self._noise_std),
            generator=self.latent_rng,
            reshaped=self._reshaped,
        )

    def _batch_source(self, data: Tensor | ImageData | BatchSource | None) -> BatchSource | None:
        if isinstance(data, ImageData):
            data = data.images
        if isinstance(data, Tensor):
            return DeviceLoader(data, self.config.batch_size, seed=self.config.seed, device=self.device)
        if data is not None and not hasattr(data, "batch"):
            want = "Tensor, ImageData or an object with batch(step)"
            raise TypeError(f"Trainer: expected data type {want}, got {type(data).__name__}")
        return data


def device_of(config: TrainConfig) -> torch.device:
    """Return the device that a configuration trains on; "auto" takes the GPU where there is one.

    Raises:
        ValueError: no such device here; ``cuda_graph`` "on" without a GPU.
    """
    name = config.device
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            device = torch.device(name)
            # Latents are drawn there; "meta" holds tensors and draws nothing.
            torch.Generator(device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            gpus = "".join(f", cuda:{index}" for index in range(torch.cuda.device_count()))
            raise ConfigError("TrainConfig", "device", f"one of auto, cpu{gpus}", repr(name)) from error
    if config.cuda_graph == "on" and graphs_on(device) is None:
        raise ConfigError("TrainConfig", "device", "a GPU for cuda_graph on", device)
    return device


def draw_latents(n: int, latent_dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw z ~ N(0, 1), (n, latent_dim), on the CPU: the same latents for a seed whatever the device.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"sample: expected n at least 1, got {n}")
    return torch.randn((n, latent_dim), generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor) -> Tensor:
    """Run G on latents (n, latent_dim) in evaluation mode, a few at a time; its modes are put back."""
    modes = [(module, module.training) for module in generator.modules()]
    generator.eval()
    try:
        return torch.cat([generator(part) for part in z.split(_SAMPLE_BATCH)])
    finally:
        # One by one: a layer that its owner keeps in evaluation mode stays there.
        for module, training in modes:
            module.training = training


def _layout(discriminator: nn.Module) -> torch.memory_format:
    """Channels-last where the weights of D are: its first convolution would copy each batch into that."""
    for p in discriminator.parameters():
        if p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
    return torch.preserve_format


def _own_moments(optimizer: torch.optim.Optimizer) -> None:
    """Copy the moments, which loading only refers to, into the memory layout of their parameters.

    Fused Adam walks parameters and moments in storage order and checks nothing.
    """
    for parameter, state in optimizer.state.items():
        for name, moment in state.items():
            if isinstance(parameter, Tensor) and isinstance(moment, Tensor):
                like = parameter.detach() if moment.shape == parameter.shape else moment
                state[name] = torch.empty_like(like, dtype=moment.dtype, device=moment.device).copy_(moment)
            else:
                state[name] = copy.deepcopy(moment)


def _latent_dim(config: TrainConfig, generator: nn.Module) -> int:
    own = getattr(generator, "latent_dim", None)
    if config.latent_dim is None and not isinstance(own, int):
        raise ValueError("Trainer: expected config.latent_dim or generator.latent_dim an int, got neither")
    if config.latent_dim is not None and isinstance(own, int) and own != config.latent_dim:
        raise ValueError(f"Trainer: expected config.latent_dim {own} as generator.latent_dim, got {config.latent_dim}")
    return config.latent_dim if config.latent_dim is not None else own  # type: ignore[return-value]
