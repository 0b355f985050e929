"""Train a generator and a discriminator against each other.

>>> import torch
>>> from gan_fast.models import DCGANDiscriminator, DCGANGenerator
>>> from gan_fast.train import TrainConfig, Trainer
>>> images = torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8)
>>> config = TrainConfig(steps=2, batch_size=8, log_every=1, device="cpu")
>>> trainer = Trainer(config, DCGANGenerator(8, 1, 16, 4), DCGANDiscriminator(1, 16, 4), images)
>>> [row["step"] for row in trainer.fit()]
[1, 2]
>>> state = trainer.state_dict()  # to be saved with torch.save
>>> losses = trainer.step(torch.rand(8, 1, 16, 16) * 2 - 1)  # one more iteration, on a batch of your own
>>> trainer.steps_done, losses["d_loss"].isfinite().item()
(3, True)
>>> trainer.load_state_dict(state)  # back to step 2
>>> trainer.steps_done, trainer.sample(4).shape
(2, torch.Size([4, 1, 16, 16]))
"""

from __future__ import annotations

import collections
import copy
import functools
import logging
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
from gan_fast.train.average import all_finite, make_average, trained_tensors, update_average
from gan_fast.train.buffers import BufferRecord, buffer_dicts, check_initialized
from gan_fast.train.config import ConfigError, TrainConfig
from gan_fast.train.graph import CapturedStep, StepState, graphs_on
from gan_fast.train.optimizers import checked_optimizer, state_values, type_name
from gan_fast.train.step import d_step, g_step, one_stage_step
from gan_fast.train.undo import SavedValues, storage_id

logger = logging.getLogger("gan_fast")

LOGGED = ("d_loss", "g_loss", "d_real", "d_fake", "d_accuracy", "penalty")
_RESULTS = (*LOGGED, "skipped")
_MODELS = ("generator", "discriminator", "ema_generator")
_OPTIMIZERS = ("g_optimizer", "d_optimizer")

# Layers that change the shape of D's output, but not its values.
_SHAPE_LAYERS = (nn.Flatten, nn.Unflatten, nn.Identity)

# Images that `generate` makes at a time, so that its memory does not grow with their number.
_SAMPLE_BATCH = 256


class TrainingDivergedError(RuntimeError):
    """Training cannot continue because gradients or weights are NaN or infinite."""


class BatchSource(Protocol):
    """Any object that returns the training batch of a step."""

    def batch(self, step: int) -> Tensor:
        """Return the real images of a batch.

        Args:
            step: number of the batch, from 0. Equal steps should give equal batches, so that a resumed training sees
                the same batches as an uninterrupted one.

        Returns:
            Floating point (N, C, H, W). Images in [-1, 1] (not checked).
        """
        ...


class Trainer:
    """Train a generator G against a discriminator D.

    One iteration: ``d_steps`` times, D descends the objective's loss and its penalties, each time on a new batch of
    real images x and of latents z; then G descends its loss on the last of these z, against the updated D. With
    ``update`` "one_stage", both descend from one pass through the D before its update. Both use Adam. Samples are
    drawn from an exponential moving average of G.

    Args:
        config: settings of the algorithm, such as objective, penalties and regularizers.
        generator: maps latents (N, latent_dim) to images (N, C, H, W) in [-1, 1]. It is moved to the device and trained
            in place.
        discriminator: maps images (N, C, H, W) to one logit per image. It is moved to the device and trained in place;
            the regularizer "spectral_norm" parametrizes its layers. It must not contain batch norm if ``update`` is
            "one_stage". A final nn.Sigmoid is reported as a warning, except for the objective "least_squares".
        data: the training images. One of

            - a uint8 tensor (N, C, H, W), or an ``ImageData`` as :func:`gan_fast.data.load_images` returns it: batches
              are shuffled, and pixels are scaled from 0..255 to [-1, 1];
            - any object with a method ``batch(step)`` that returns the floating point images (N, C, H, W) of a batch.
              Images in [-1, 1] (not checked). Update i of D, counted from 0 over the whole training, uses ``batch(i)``;
            - None, if only :meth:`step` is called.

    Attributes:
        generator, discriminator: G and D.
        ema_generator: the average of G, in evaluation mode.
        d_optimizer, g_optimizer: the optimizers of D and G; see Notes.
        steps_done: iterations so far.
        skipped_steps: int64 scalar tensor: how many of them were skipped, see Notes.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: fewer images than one batch; no ``latent_dim`` in ``config`` or ``generator``; a model without
            trainable parameters or with lazy ones; a device that is not available, or ``cuda_graph`` "on" without a
            GPU; a discriminator that does not suit ``update`` or ``regularizers``.

    Notes:
        Average: a_t = b_t a_{t-1} + (1 - b_t) w_t with b_t = min(ema_decay, t / (t + 9)) and t from 1, over the
        parameters of G and the running statistics of its norms; other buffers are copied. So early in training the
        average spans about the last tenth of the steps, and the initial weights leave no trace.

        Skipped updates: if a gradient of D or G is not finite, the weights and moments of that model do not change, and
        the buffers of both are restored. This is decided on the device; the host waits for it only if the iteration
        added a buffer or changed the shape of one, which the device cannot undo.

        Optimizers: set ``d_optimizer`` and ``g_optimizer`` to any torch optimizer of the model's parameters whose step
        needs no closure. The learning rates and betas of ``config`` apply only to the initial Adam. Make a learning
        rate scheduler with, for instance, ``StepLR(trainer.g_optimizer, 1000)``, and call its ``step()`` yourself.
        Optimizers of torch with ``fused=True`` can skip an update themselves; for any other, parameters and state are
        copied before each step. To be captured in a CUDA graph, an optimizer that has the option needs
        ``capturable=True``.

        Determinism: equal seeds, models and data give bit-identical weights on a CPU at an equal number of threads.

        CUDA graph: on a GPU, from about the fourth iteration on, an iteration runs as one CUDA graph with the same
        results, if ``config.cuda_graph`` and the models allow it. A graph does not run Python, so models whose Python
        code takes another path from step to step need ``cuda_graph="off"``.
        docs/decisions/2026-11-22-cuda-graph.md lists the changes that are detected and lead to a new capture.

        The paper draws new latents for G's update. Reusing the latents of D's last update saves a forward pass of G, as
        in common DCGAN code.

    Source: Goodfellow et al., 2014 (arXiv 1406.2661), algorithm 1.
    """

    def __init__(
        self,
        config: TrainConfig,
        generator: nn.Module,
        discriminator: nn.Module,
        data: Tensor | ImageData | BatchSource | None = None,
    ) -> None:
        if not isinstance(config, TrainConfig):
            raise TypeError(f"Trainer: expected config type TrainConfig, got {type(config).__name__}")
        self.config = config
        self.device = device_of(config)
        self.latent_dim = _latent_dim(config, generator)
        check_initialized("Trainer: expected generator", generator)
        check_initialized("Trainer: expected discriminator", discriminator)
        self.generator = generator.to(self.device).train()
        self.discriminator = discriminator.to(self.device).train()
        if "spectral_norm" in config.regularizers:
            gan_fast_nn.spectral_norm(self.discriminator)
        self.ema_generator = make_average("Trainer", self.generator)
        self._initial_buffers = {name: BufferRecord(getattr(self, name)) for name in _MODELS}
        self.data = self._batch_source(data)
        self.objective = make_objective(config.objective, real_label=config.real_label, fake_label=config.fake_label)
        self.penalties = Penalties(config.penalty, config.penalty_weight, config.penalty_center)
        self._noise = self._make_noise()
        self._feature_weight = self._check_features()
        self._check_update()
        self._warn_of_sigmoid()
        # One graph for each pattern of penalty weights in the updates of an iteration.
        self._captured_steps = self._make_captured_steps()
        self._buffer_change: str | None = None
        self.d_optimizer = self._adam(self.discriminator, config.d_lr, config.d_betas)
        self.g_optimizer = self._adam(self.generator, config.g_lr, config.g_betas)
        self.latent_rng = torch.Generator(self.device).manual_seed(config.seed)
        # Images and latents have the dtype of G, so that a float64 model trains in float64.
        self.dtype = next((p.dtype for p in self.generator.parameters() if p.is_floating_point()), torch.float32)
        self.steps_done = 0
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=self.device)
        # Tensors, because a CUDA graph would freeze Python numbers; float64, so that each dtype rounds them once.
        self._average_weight = torch.zeros((), dtype=torch.float64, device=self.device)
        self._noise_std = torch.zeros((), dtype=torch.float64, device=self.device)
        self._memory_format = _memory_format(self.discriminator)
        self._stop_requested = False

    @property
    def d_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of D: Adam, unless it was set to another."""
        return self._d_optimizer

    @d_optimizer.setter
    def d_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._d_optimizer = checked_optimizer("Trainer.d_optimizer", optimizer, self.discriminator)
        self._discard_graphs()

    @property
    def g_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of G: Adam, unless it was set to another."""
        return self._g_optimizer

    @g_optimizer.setter
    def g_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._g_optimizer = checked_optimizer("Trainer.g_optimizer", optimizer, self.generator)
        self._discard_graphs()

    def _discard_graphs(self) -> None:
        """Discard the graphs, and the failures to capture one: both belong to the old optimizer."""
        if self._captured_steps is not None:
            self._captured_steps.clear()

    def step(self, real: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """Run one iteration: ``d_steps`` updates of D, then one of G.

        Args:
            real: real images, floating point (N, C, H, W), on any device, with values in [-1, 1], which is not checked.
                One batch is used for all ``d_steps`` updates of D, each with new latents; a sequence of ``d_steps``
                batches gives one to each update, as in :meth:`fit`.

        Returns:
            New scalar tensors on the device, without gradient, by name:

            - "d_loss", "g_loss": the losses. "d_loss" is that of the last update of D, without the penalties;
            - "penalty": the weighted penalties in that update;
            - "d_real", "d_fake", "d_accuracy": mean D(x), mean D(G(z)), and the share of x and G(z) that D classifies
              correctly, before that update. D(x) is a probability for the objectives "minimax" and "non_saturating",
              else the output of D;
            - "skipped": 1 if an update was skipped because a gradient was not finite, else 0.

        Raises:
            TypeError: a batch is not a floating point tensor. In the first iteration: G or D does not return a tensor.
            ValueError: a sequence of other than ``d_steps`` batches. In the first iteration: G cannot take latents
                (N, latent_dim), or its images have another shape than the batch.
            RuntimeError: ``cuda_graph`` is "on" and the step cannot be captured; nothing was changed.

        Notes:
            Does not synchronize host and device, except in the one step that captures a CUDA graph.
        """
        batches = self._on_device(real)
        step = self.steps_done + 1
        decay = min(self.config.ema_decay, step / (step + 9))
        self._average_weight.fill_(1.0 - decay)
        if self._noise is not None:
            self._noise_std.fill_(self._noise.std_at(self.steps_done))
        scales = self._penalty_scales()
        iterate = functools.partial(self._iterate, scales)
        try:
            if self._captured_steps is None:
                values = iterate(batches)
            else:
                values = self._captured_steps[scales](iterate, batches, self._step_state())
        except TypeError as error:
            if not self.steps_done:
                self._check_logits_type(batches[0], error)
            raise
        self.steps_done = step
        return dict(zip(_RESULTS, values.unbind(), strict=True))

    def _on_device(self, real: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Check the batches and start copying them to the device."""
        d_steps = self.config.d_steps
        if not isinstance(real, (Tensor, Sequence)):
            raise TypeError(f"Trainer.step: expected real type torch.Tensor, got {type(real).__name__}")
        batches = [real] if isinstance(real, Tensor) else list(real)
        if not isinstance(real, Tensor) and len(batches) != d_steps:
            raise ValueError(
                f"Trainer.step: expected real a sequence of d_steps = {d_steps} batches, got {len(batches)}"
            )
        for index, batch in enumerate(batches):
            if not isinstance(batch, Tensor):
                raise TypeError(f"Trainer.step: expected real type torch.Tensor, got {type(batch).__name__}")
            if not batch.is_floating_point():
                raise TypeError(
                    f"Trainer.step: expected real dtype floating point, with values in [-1, 1], got {batch.dtype}; "
                    "scale uint8 images with images / 127.5 - 1"
                )
            if self.device.type == "cuda" and batch.is_cpu and not batch.is_pinned():
                # A copy from pageable memory would wait until the device has finished the last step.
                batch = batch.pin_memory()
            batch = batch.detach().to(self.device, non_blocking=True)
            memory_format = self._memory_format if batch.dim() == 4 else torch.preserve_format
            batches[index] = batch.to(self.dtype, memory_format=memory_format)
        return batches * d_steps if isinstance(real, Tensor) else batches

    def _penalty_scales(self) -> tuple[float, ...]:
        """Return the factor on the penalties' weight for each update of D in the next iteration."""
        every, first = self.config.penalty_every, self.steps_done * self.config.d_steps
        if not self.penalties.names:
            return (0.0,) * self.config.d_steps
        return tuple(float(every) if (first + i) % every == 0 else 0.0 for i in range(self.config.d_steps))

    def _iterate(self, penalty_scales: Sequence[float], batches: Sequence[Tensor]) -> Tensor:
        """Queue one iteration and return the values of ``_RESULTS`` in one tensor.

        All that changes from one iteration to the next is in tensors, as a CUDA graph freezes Python numbers.
        """
        models = (self.discriminator, self.generator)
        # A buffer that is a view of a parameter needs no copy, as a skipped update does not change the parameter.
        buffers = SavedValues(buffer_dicts(*models), {storage_id(p) for model in models for p in model.parameters()})
        objective = TwoPlayerLosses(self.objective, self.penalties, self._feature_weight)
        one_stage = self.config.update == "one_stage"
        skipped = torch.zeros((), device=self.device)
        for index, (batch, scale) in enumerate(zip(batches, penalty_scales, strict=True)):
            # G learns only from the last images, so only these need an autograd graph.
            with torch.set_grad_enabled(index == len(batches) - 1), self._autocast():
                latents = self._latents(len(batch))
                fake = self.generator(latents) if self.steps_done else self._checked_images(latents, batch)
            real, noisy_fake = self._add_instance_noise(batch), self._add_instance_noise(fake)
            arguments = (objective, real, noisy_fake, self._autocast(), scale, self.latent_rng)
            if one_stage:
                d_loss, g_loss, skip = one_stage_step(
                    self.discriminator, self.d_optimizer, self.g_optimizer, *arguments
                )
            else:
                d_loss, skip = d_step(self.discriminator, self.d_optimizer, *arguments)
            skipped = torch.maximum(skipped, skip)
            if "weight_clipping" in self.config.regularizers:
                clip_weights(list(self.discriminator.parameters()), self.config.clip_value)
        if not one_stage:
            real, noisy_fake = self._add_instance_noise(batches[-1]), self._add_instance_noise(fake)
            g_loss, skip = g_step(self.discriminator, self.g_optimizer, objective, real, noisy_fake, self._autocast())
            skipped = torch.maximum(skipped, skip)
        self._finish_iteration(buffers, skipped)
        return torch.stack((d_loss.loss, g_loss, *d_loss.means.unbind(), d_loss.penalty, skipped))

    def _checked_images(self, latents: Tensor, batch: Tensor) -> Tensor:
        """Return G(z); raise if G cannot take the latents, or if its images have another shape than the batch."""
        try:
            images = self.generator(latents)
        except (RuntimeError, ValueError, TypeError) as error:
            if "memory" in str(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"Trainer: the generator cannot take latents (N, {self.latent_dim}): {reason}; "
                f"put nn.Unflatten(1, ({self.latent_dim}, 1, 1)) first if it starts with a convolution"
            ) from error
        if not isinstance(images, Tensor):
            raise TypeError(
                f"Trainer: expected the generator to return a tensor of images, got {type(images).__name__}"
            )
        if images.shape != batch.shape:
            want, have = (_shape_for_n(t.shape, len(batch)) for t in (batch, images))
            raise ValueError(f"Trainer: expected generator to return images {want} like the data, got {have}")
        return images

    def _check_logits_type(self, real: Tensor, error: TypeError) -> None:
        """Raise if D does not return a tensor; called only after a step has failed."""
        try:
            with torch.no_grad(), self._autocast():
                logits = self.discriminator(real)
        except Exception:
            return
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"Trainer: expected the discriminator to return a tensor of logits, got {type(logits).__name__}"
            ) from error

    def _add_instance_noise(self, images: Tensor) -> Tensor:
        """Return the images that D is given: with instance noise if it is configured."""
        if self._noise is None:
            return images
        return ops.add_noise(images, self._noise_std.to(images.dtype), generator=self.latent_rng)

    @torch.no_grad()
    def _finish_iteration(self, buffers: SavedValues, skipped: Tensor) -> None:
        """Restore the buffers if an update was skipped, update the counters and the average of G."""
        is_skipped = skipped > 0
        change = buffers.restore_if(is_skipped)
        # The first iteration may add buffers that then stay the same.
        self._buffer_change = change if self.steps_done else None
        self.skipped_steps += is_skipped
        self.skipped_in_a_row += 1
        self.skipped_in_a_row *= is_skipped
        update_average(self.ema_generator, self.generator, self._average_weight)

    def fit(
        self,
        on_log: Callable[[dict[str, float]], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> list[dict[str, float]]:
        """Train until ``config.steps`` iterations are done or :meth:`stop` is called; a later call continues.

        Args:
            on_log: called with a row every ``log_every`` steps and after the last one. A row maps to numbers: "step";
                "d_loss", "g_loss", "d_real", "d_fake", "d_accuracy" and "penalty", as :meth:`step` returns them,
                averaged over the steps since the last row; "images_per_s", real images in these steps per second;
                "time_s", seconds since the call; and "skipped_steps" since the training began.
            on_step: called after every iteration with the number of iterations done.

        Returns:
            The rows.

        Raises:
            ValueError: the trainer was made without data.
            TrainingDivergedError: ``max_skipped_steps`` iterations in a row were skipped, which is checked at each row.
        """
        if self.data is None:
            raise ValueError("Trainer.fit: expected a trainer made with data, got data None; pass data to Trainer")
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
        """Make :meth:`fit` return after the current iteration; safe to call from a signal handler."""
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
        """Generate images in evaluation mode, without changing anything that training depends on.

        Args:
            n: number of images, at least 1; ignored if ``z`` is given.
            z: latents (n, latent_dim); None draws them.
            seed: seed of the drawn latents. They do not depend on the device.
            ema: True uses the averaged generator, False the current one.

        Returns:
            (n, C, H, W) in [-1, 1], of the generator's dtype, on the device.

        Raises:
            ValueError: n below 1.
        """
        generator = self.ema_generator if ema else self.generator
        if z is None:
            z = draw_latents(n, self.latent_dim, seed, dtype=self.dtype)
        return generate(generator, z.to(self.device, self.dtype))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that :meth:`load_state_dict` needs to continue the training.

        Returns:
            Nested dicts of tensors, numbers and strings, which ``torch.load`` can read with ``weights_only=True``. The
            tensors share memory with the trainer: save or copy them before the next step. The step number is the
            position in the data; torch's global random state is included for models that draw from it (dropout).
        """
        state = {
            "steps_done": self.steps_done,
            **{name: getattr(self, name).state_dict() for name in _MODELS},
            "buffers": {name: record.changes(getattr(self, name)) for name, record in self._initial_buffers.items()},
            **{name: getattr(self, name).state_dict()["state"] for name in _OPTIMIZERS},
            "optimizers": {name: type_name(getattr(self, name)) for name in _OPTIMIZERS},
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "latent_rng": self.latent_rng.get_state(),
            "torch_rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def is_finite(self) -> bool:
        """Return whether all weights, moments and running statistics are finite; waits for the device."""
        tensors = [*trained_tensors(self.discriminator), *trained_tensors(self.generator)]
        tensors += trained_tensors(self.generator, self.ema_generator)
        for optimizer in (self.g_optimizer, self.d_optimizer):
            tensors += [t for t in state_values(optimizer) if isinstance(t, Tensor)]
        return all_finite(tensors)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` returned: N + N steps equal 2N, bit for bit on a CPU.

        Learning rates, betas and all other settings are those of this trainer's optimizers, not of the saved ones.
        Sets torch's global random state.

        Args:
            state: of a trainer with equal models and optimizers of the same types. It is not changed.

        Raises:
            KeyError: the state lacks an entry.
            RuntimeError: the state is of other models, or of optimizers of other types.
        """
        for name, want in state.get("optimizers", {}).items():
            have = type_name(getattr(self, name))
            if have != want:
                raise RuntimeError(
                    f"Trainer.load_state_dict: expected {name} of type {want}, as in the state, got {have}; "
                    f"set trainer.{name} before loading"
                )
        for name, record in self._initial_buffers.items():
            record.load(getattr(self, name), state[name], state.get("buffers", {}).get(name, {}))
        for name in _OPTIMIZERS:
            optimizer = getattr(self, name)
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state[name], "param_groups": groups})
            _copy_state_tensors(optimizer)
        self.skipped_steps.copy_(state["skipped_steps"])
        self.skipped_in_a_row.copy_(state["skipped_in_a_row"])
        self.steps_done = state["steps_done"]
        torch.set_rng_state(state["torch_rng"].cpu())
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        # A state from another type of device has another size and cannot be used: the latents restart from the seed.
        if state["latent_rng"].shape == self.latent_rng.get_state().shape:
            self.latent_rng.set_state(state["latent_rng"].cpu())

    def _latents(self, n: int) -> Tensor:
        shape = (n, self.latent_dim)
        return torch.randn(shape, generator=self.latent_rng, device=self.device, dtype=self.dtype)

    def _autocast(self) -> AbstractContextManager:
        # A new context for each phase: weights that are cast without gradients are cached, and a phase that needs their
        # gradients must not use them.
        wanted = self.config.precision
        enabled = wanted == "bf16" or (wanted == "auto" and self.device.type == "cuda")
        # Only the outermost context clears the cache: in a caller's context, casts would outlive an update of weights.
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
        # Suppresses its warning about the iterations before the capture.
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
                "Trainer: expected discriminator without batch norm for update 'one_stage', got one with "
                f"{len(norms)} batch norms; use DCGANDiscriminator(norm='none'), or --d-norm none"
            )

    def _warn_of_sigmoid(self) -> None:
        """Warn if D seems to end in a sigmoid, as in code that uses BCELoss; LSGAN also works with one."""
        leaves = [m for m in self.discriminator.modules() if next(m.children(), None) is None]
        values = [m for m in leaves if not isinstance(m, _SHAPE_LAYERS)]
        if values and isinstance(values[-1], nn.Sigmoid) and self.config.objective != "least_squares":
            logger.warning(
                "Trainer: the last layer of the discriminator is nn.Sigmoid, so that its outputs all lie in [0, 1]; "
                "the trainer expects logits: remove the final Sigmoid"
            )

    def _check_features(self) -> float:
        if "feature_matching" not in self.config.regularizers:
            return 0.0
        if not hasattr(self.discriminator, "forward_with_features"):
            raise ValueError(
                "Trainer: expected discriminator with a method forward_with_features(images) that returns "
                "(logits, features), for the regularizer feature_matching, got a "
                f"{type(self.discriminator).__name__} without it"
            )
        return self.config.feature_weight

    def _step_state(self) -> StepState:
        return StepState(
            models=(self.generator, self.discriminator),
            average=self.ema_generator,
            optimizers=(self.g_optimizer, self.d_optimizer),
            objective=self.objective,
            counters=(self.skipped_steps, self.skipped_in_a_row, self._average_weight, self._noise_std),
            generator=self.latent_rng,
            buffer_change=self._buffer_change,
        )

    def _batch_source(self, data: Tensor | ImageData | BatchSource | None) -> BatchSource | None:
        if isinstance(data, ImageData):
            data = data.images
        if isinstance(data, Tensor):
            try:
                return DeviceLoader(data, self.config.batch_size, seed=self.config.seed, device=self.device)
            except (TypeError, ValueError) as error:
                message = str(error).replace("images_uint8", "data", 1).removeprefix("DeviceLoader: ")
                raise type(error)(f"Trainer: {message}") from error
        if data is not None and not hasattr(data, "batch"):
            want = "torch.Tensor, ImageData or an object with a method batch(step)"
            raise TypeError(f"Trainer: expected data type {want}, got {type(data).__name__}")
        return data


def device_of(config: TrainConfig) -> torch.device:
    """Return the device that a configuration trains on; "auto" selects the GPU if there is one.

    Raises:
        ValueError: the device is not available, or is not a GPU although ``cuda_graph`` is "on".
    """
    name = config.device
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = usable_device(name, lambda want, have: ConfigError("Trainer", "device", f"one of auto, {want}", have))
    if config.cuda_graph == "on" and graphs_on(device) is None:
        raise ConfigError("TrainConfig", "device", "a GPU when cuda_graph is on", device)
    return device


def usable_device(name: str | torch.device, error: Callable[[str, str], ValueError]) -> torch.device:
    """Return a device that can compute.

    Raises:
        ValueError: the device is not available; ``error`` makes it from the available names and from what was given.
    """
    try:
        device = torch.device(name)
        # "meta" holds tensors, but cannot draw latents.
        torch.Generator(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as reason:
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        have = repr(name)
        if not gpus:
            state = "sees no GPU" if torch.backends.cuda.is_built() else "has no CUDA"
            have += f": this PyTorch ({torch.__version__}) {state}"
        raise error(", ".join(["cpu", *gpus]), have) from reason
    return device


def draw_latents(n: int, latent_dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw latents z ~ N(0, 1), (n, latent_dim), on the CPU, so that a seed gives the same latents on any device.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"sample: expected n at least 1, got {n}")
    return torch.randn((n, latent_dim), generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor) -> Tensor:
    """Return G(z) for latents (n, latent_dim), in evaluation mode and in parts; the modes of G are restored."""
    modes = [(module, module.training) for module in generator.modules()]
    generator.eval()
    try:
        return torch.cat([generator(part) for part in z.split(_SAMPLE_BATCH)])
    finally:
        # Restore the mode of each module: some may be in evaluation mode during training.
        for module, training in modes:
            module.training = training


def _shape_for_n(shape: torch.Size, n: int) -> str:
    """Return a shape as text, with "N" for a first dim of size n."""
    return f"({', '.join('N' if dim == 0 and size == n else str(size) for dim, size in enumerate(shape))})"


def _memory_format(discriminator: nn.Module) -> torch.memory_format:
    """Return channels-last if D has weights in it, as its first convolution would otherwise copy each batch."""
    for p in discriminator.parameters():
        if p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
    return torch.preserve_format


def _copy_state_tensors(optimizer: torch.optim.Optimizer) -> None:
    """Copy a loaded state, which shares memory with the saved one, and give moments their parameters' memory layout.

    Fused Adam reads parameters and moments in storage order without checking that their layouts agree.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(parameter, Tensor) and isinstance(value, Tensor):
                like = parameter.detach() if value.shape == parameter.shape else value
                state[name] = torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)
            else:
                state[name] = copy.deepcopy(value)


def _latent_dim(config: TrainConfig, generator: nn.Module) -> int:
    own = getattr(generator, "latent_dim", None)
    if config.latent_dim is None and not isinstance(own, int):
        raise ValueError(
            "Trainer: expected an int in config.latent_dim or generator.latent_dim, got neither; "
            "set TrainConfig(latent_dim=...)"
        )
    if config.latent_dim is not None and isinstance(own, int) and own != config.latent_dim:
        raise ValueError(
            f"Trainer: expected config.latent_dim {own}, as generator.latent_dim is, got {config.latent_dim}"
        )
    return config.latent_dim if config.latent_dim is not None else own  # type: ignore[return-value]
