"""The GPU suite's measurements of whole DCGAN-64 training steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks import harness, roofline, steps
from benchmarks.gpu_machine import Machine, Record, add_times, reason, time_survivors
from benchmarks.harness import GAN_FAST, Work
from benchmarks.networks import LATENT_DIM, Pair, eager_critic, eager_models
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train import TrainConfig, Trainer

EAGER = "eager float32"
TUNED = "eager bfloat16 channels_last, fused Adam"
GRAPHED = "the same in a CUDA graph captured by hand"
CRITIC_GRAPHED = "eager bfloat16 channels_last in a CUDA graph"
# Applies to the losses of the first iteration, bfloat16 compared with eager float32; a wrong gradient exceeds it.
TOLERANCE = 0.1
# More iterations than any provider needs until it is compiled and captured.
WARM_UP = 12
EAGER_BEFORE_CAPTURE = 4
SAMPLE_MS = 20.0


@dataclass(frozen=True)
class Step:
    """A provider's iterations.

    Args:
        work: one iteration; returns its losses.
        search: torch.backends.cudnn.benchmark during this provider's iterations.
        captured: returns whether a CUDA graph runs the iterations by now; None if no graph is intended.
    """

    work: Work
    search: bool
    captured: Callable[[], bool] | None = None

    def __call__(self) -> Mapping[str, Tensor]:
        torch.backends.cudnn.benchmark = self.search
        return self.work()


class Setting:
    """Models with the same weights, and one batch of images, for every provider."""

    def __init__(self, machine: Machine, batch: int) -> None:
        self.machine = machine
        self.batch = machine.size(batch, 4)
        self.image_size, self.width = machine.size(64, 16), machine.size(64, 8)
        torch.manual_seed(0)
        sizes = {"image_size": self.image_size, "width": self.width}
        self.weights = DCGANGenerator(LATENT_DIM, **sizes), DCGANDiscriminator(**sizes)
        shape = (self.batch, 3, self.image_size, self.image_size)
        self.real = torch.rand(shape, device=machine.device) * 2 - 1

    def gan_fast_models(self) -> Pair:
        """Return models in channels_last, as the command line and the tuned baselines train them on a GPU."""
        generator, discriminator = (
            copy.deepcopy(model).to(self.machine.device).to(memory_format=torch.channels_last) for model in self.weights
        )
        return generator, discriminator

    def eager_models(self, layout: torch.memory_format = torch.contiguous_format) -> Pair:
        def with_weights(model: nn.Module, source: nn.Module) -> nn.Module:
            for parameter, value in zip(model.parameters(), source.parameters(), strict=True):
                parameter.data.copy_(value)
            return model.to(self.machine.device).to(memory_format=layout)

        made = eager_models(self.image_size, 3, self.width)
        generator, discriminator = (with_weights(*pair) for pair in zip(made, self.weights))
        return generator, discriminator

    def draw(self) -> Tensor:
        # Draw from torch's global generator: with one seed, all providers get the same latents in their first step.
        return torch.randn(self.batch, LATENT_DIM, 1, 1, device=self.machine.device)

    def example_loop(self) -> Step:
        return Step(steps.example_loop(self.eager_models(), self.real, self.draw), search=False)

    def tuned(self, **options: Callable[..., Callable[..., Tensor]]) -> Step:
        real = self.real.contiguous(memory_format=torch.channels_last)
        work = steps.tuned(self.eager_models(torch.channels_last), real, self.draw, half=True, **options)
        return Step(work, search=True)

    def graphed(self) -> Step:
        """Return the whole tuned step, with both updates, captured by hand in one CUDA graph with static inputs."""
        real = self.real.contiguous(memory_format=torch.channels_last)
        static = real.clone()
        step = steps.tuned(self.eager_models(torch.channels_last), static, self.draw, half=True)
        recorded = _recorded(self.machine, step)

        def work() -> Mapping[str, Tensor]:
            static.copy_(real)
            return recorded.work()

        return replace(recorded, work=work)

    def compiled(self, mode: str) -> Step:
        def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return self.machine.compile(function, mode)

        step = self.tuned(wrap=wrap)

        def work() -> Mapping[str, Tensor]:
            # From here on max-autotune's graphs can overwrite the results of the previous iteration.
            torch.compiler.cudagraph_mark_step_begin()
            return {name: loss.clone() for name, loss in step().items()}

        return Step(work, search=True)

    def trainer(self, search: bool = False) -> Step:
        config = TrainConfig(
            batch_size=self.batch, precision="bf16", device=self.machine.device.type,
            cuda_graph="off" if self.machine.dry else "on",
        )  # fmt: skip
        made = Trainer(config, *self.gan_fast_models(), None)
        real = self.real.contiguous(memory_format=torch.channels_last)

        def work() -> Mapping[str, Tensor]:
            losses = made.step(real)
            return {name: losses[name] for name in ("d_loss", "g_loss")}

        def captured() -> bool:
            # With "on" Trainer raises if a capture fails, but not if the step never becomes capturable.
            steps = made._captured_steps or {}
            return any(step._captured is not None for step in steps.values())

        return Step(work, search, captured)


def step(machine: Machine, batch: int = 128) -> Iterator[Record]:
    """Measure whole steps: eager, Trainer.step, the tuned step captured by hand, the tuned step."""
    setting = Setting(machine, batch)
    # Eager comes first, because its losses are the reference; then the most important ones, because time may run out.
    providers: dict[str, Callable[[], Step]] = {
        EAGER: setting.example_loop,
        GAN_FAST: setting.trainer,
        GRAPHED: setting.graphed,
        f"{GAN_FAST}, cudnn.benchmark": lambda: setting.trainer(search=True),
        TUNED: setting.tuned,
    }
    yield from measure(machine, f"DCGAN-64 training step, batch {batch}", roofline.step_flop(batch), providers)


def large_step(machine: Machine) -> Iterator[Record]:
    """Measure whole steps at batch 1024."""
    yield from step(machine, 1024)


def compiled_step(machine: Machine, mode: str = "default") -> Iterator[Record]:
    """Measure torch.compile of the tuned step's forward passes; the first call's time includes compilation."""
    setting = Setting(machine, 128)
    providers = {
        EAGER: setting.example_loop,
        f"torch.compile {mode} of {TUNED}": lambda: setting.compiled(mode),
    }
    yield from measure(machine, "DCGAN-64 training step, batch 128", roofline.step_flop(128), providers)


def autotuned_step(machine: Machine) -> Iterator[Record]:
    yield from compiled_step(machine, "max-autotune")


def critic_iteration(machine: Machine) -> Iterator[Record]:
    """Measure an iteration of a WGAN-GP critic in CUDA graphs: losses on real and generated images, penalty, update."""
    batch = 128
    size, width = machine.size(64, 16), machine.size(64, 8)
    torch.manual_seed(0)
    weights = eager_critic(size, 3, width)
    images = [torch.rand(machine.size(batch, 4), 3, size, size, device=machine.device) * 2 - 1 for _ in range(2)]

    def provider(loss: Callable[[nn.Module, Tensor, Tensor], Tensor], critic: nn.Module, graphed: bool = True) -> Step:
        for parameter, value in zip(critic.parameters(), weights.parameters(), strict=True):
            parameter.data.copy_(value)
        layout = torch.channels_last if graphed else torch.contiguous_format
        critic.to(machine.device, memory_format=layout)  # type: ignore[call-overload]
        real, fake = (t.contiguous(memory_format=layout).clone() for t in images)
        step = steps.critic_iteration(critic, (real, fake), loss, half=graphed)
        return _recorded(machine, step) if graphed else Step(step, search=False)

    providers = {
        EAGER: lambda: provider(steps.wgan_gp, eager_critic(size, 3, width), graphed=False),
        GAN_FAST: lambda: provider(steps.gan_fast_wgan_gp, DCGANDiscriminator(3, size, width, "none")),
        CRITIC_GRAPHED: lambda: provider(steps.wgan_gp, eager_critic(size, 3, width)),
    }
    # Three passes each for real and generated images, four for the penalty.
    flop = 10 * sum(layer.flop(batch) for layer in roofline.LAYERS if layer.name.startswith("D"))
    yield from measure(machine, f"WGAN-GP critic iteration, batch {batch}", flop, providers)


def _recorded(machine: Machine, step: Work) -> Step:
    """Return iterations on static tensors: without a graph at first, then as a CUDA graph captured by hand."""
    calls = 0
    replay: Work = step
    losses: Mapping[str, Tensor] = {}

    def work() -> Mapping[str, Tensor]:
        nonlocal calls, replay, losses
        calls += 1
        if calls <= EAGER_BEFORE_CAPTURE:
            return step()
        if not losses:
            replay, losses = machine.record(step)
        replay()
        return losses

    return Step(work, search=True, captured=lambda: bool(losses) and not machine.dry)


def measure(machine: Machine, case: str, flop: float, providers: Mapping[str, Callable[[], Step]]) -> Iterator[Record]:
    """Check each provider's losses in the first iteration, warm it up, and time it together with those before it.

    Yields:
        After each provider, the record so far. Beside the figures of gpu_machine.measure it has captured (whether a
        CUDA graph ran the iterations, if one is intended), first_call_s, the first iteration's d_loss and g_loss,
        peak_memory_mib (tensors) and reserved_mib (also what graphs and the allocator keep), both with models and
        optimizers, and times_floor, the time divided by that of ``flop`` at an H200's nominal rate.
    """
    record: Record = {"case": case, "baseline": None, "providers": {}}
    works: dict[str, Step] = {}
    expected: dict[str, Tensor] = {}
    for name, make in providers.items():
        found: Record = {}
        record["providers"][name] = found
        if name in machine.without:
            found["skipped"] = "it broke the device in an earlier run"
            continue
        try:
            allocated, reserved = machine.allocated()
            torch.manual_seed(0)
            work = make()
            torch.manual_seed(0)
            started = time.perf_counter()
            losses = {key: loss.detach().float().clone() for key, loss in work().items()}
            machine.synchronize()
            found["first_call_s"] = harness.significant(time.perf_counter() - started)
            harness.compare(f"{case}: {name}", losses, expected or losses, TOLERANCE)
            found |= {key: harness.significant(loss.item()) for key, loss in losses.items()}
            # The first call's search for algorithms takes memory that later calls do not need.
            machine.reset_peak()
            for _ in range(machine.size(WARM_UP, 6)):
                work()
            machine.synchronize()
            if work.captured is not None:
                found["captured"] = work.captured()
                if not found["captured"] and not machine.dry:
                    raise RuntimeError(f"{case}: {name}: expected a CUDA graph after the warm-up, got none")
            peak, most_reserved = machine.peak()
            found["peak_memory_mib"] = harness.significant((peak - allocated) / 2**20)
            found["reserved_mib"] = harness.significant((most_reserved - reserved) / 2**20)
        except Exception as error:
            found.clear()
            found.update(reason(error))
            if not machine.alive():
                record["fatal"] = name
                yield record
                return
            yield record
            continue
        works[name] = work
        if not expected:
            expected, record["baseline"] = losses, name
        add_times(record, time_survivors(machine, record, works, SAMPLE_MS), flop=flop)
        for timed, step in works.items() if "fatal" not in record else ():
            found = record["providers"][timed]
            floor_ms = flop / roofline.NOMINAL_TFLOPS / 1e9
            found["times_floor"] = harness.significant(found["time_ms"]["median"] / floor_ms)
            if not all(loss.isfinite() for loss in step().values()):
                found["failed"] = "expected finite losses after timing, got NaN or infinity"
        yield record
        if "fatal" in record:
            return
