"""What the GPU suite measures of whole DCGAN-64 training steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from benchmarks import harness, roofline, steps
from benchmarks.gpu_machine import Machine, Record, add_times, reason
from benchmarks.harness import OURS, Work
from benchmarks.networks import LATENT_DIM, Pair, eager_models
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train import TrainConfig, Trainer

EAGER = "eager float32"
TUNED = "eager bfloat16 channels_last, fused Adam"
GRAPHED = "the same in a CUDA graph captured by hand"
# The losses of the first iteration, in bfloat16 against eager's in float32; a wrong gradient is further off.
TOLERANCE = 0.1
# More than any provider takes until it runs as it will run on: compiled, captured.
WARM_UP = 12
EAGER_BEFORE_CAPTURE = 4
SAMPLE_MS = 20.0


class Setting:
    """Models with the same weights for every provider, and the batch that all train on."""

    def __init__(self, machine: Machine, batch: int) -> None:
        self.machine = machine
        self.batch = machine.size(batch, 4)
        self.image_size, self.width = machine.size(64, 16), machine.size(64, 8)
        torch.manual_seed(0)
        sizes = {"image_size": self.image_size, "width": self.width}
        self.ours = DCGANGenerator(LATENT_DIM, **sizes), DCGANDiscriminator(**sizes)
        shape = (self.batch, 3, self.image_size, self.image_size)
        self.real = torch.rand(shape, device=machine.device) * 2 - 1

    def our_models(self) -> Pair:
        generator, discriminator = (copy.deepcopy(model).to(self.machine.device) for model in self.ours)
        return generator, discriminator

    def eager_models(self, layout: torch.memory_format = torch.contiguous_format) -> Pair:
        def with_weights(model: nn.Module, source: nn.Module) -> nn.Module:
            for parameter, value in zip(model.parameters(), source.parameters(), strict=True):
                parameter.data.copy_(value)
            return model.to(self.machine.device).to(memory_format=layout)

        made = eager_models(self.image_size, 3, self.width)
        generator, discriminator = (with_weights(*pair) for pair in zip(made, self.ours))
        return generator, discriminator

    def draw(self) -> Tensor:
        # From torch's own generator: seeded alike, providers and Trainer meet the same latents in their first step.
        return torch.randn(self.batch, LATENT_DIM, 1, 1, device=self.machine.device)

    def classic(self) -> Work:
        return steps.classic(self.eager_models(), self.real, self.draw)

    def tuned(self, **options: Callable[..., Callable[..., Tensor]]) -> Work:
        real = self.real.contiguous(memory_format=torch.channels_last)
        return steps.tuned(self.eager_models(torch.channels_last), real, self.draw, half=True, **options)

    def graphed(self) -> Work:
        """The tuned step captured by hand, whole: forward, backward and both updates, from static inputs."""
        static = self.real.contiguous(memory_format=torch.channels_last).clone()
        step = steps.tuned(self.eager_models(torch.channels_last), static, self.draw, half=True)
        calls = 0
        replay: Work = step
        losses: Mapping[str, Tensor] = {}

        def work() -> Mapping[str, Tensor]:
            nonlocal calls, replay, losses
            static.copy_(self.real)
            calls += 1
            if calls <= EAGER_BEFORE_CAPTURE:
                return step()
            if not losses:
                replay, losses = self.machine.record(step)
            replay()
            return losses

        return work

    def compiled(self, mode: str) -> Work:
        def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return self.machine.compile(function, mode)

        step = self.tuned(wrap=wrap)

        def work() -> Mapping[str, Tensor]:
            # Graphs that max-autotune makes may now write over what the iteration before returned.
            torch.compiler.cudagraph_mark_step_begin()
            return {name: loss.clone() for name, loss in step().items()}

        return work

    def trainer(self) -> Work:
        config = TrainConfig(batch_size=self.batch, precision="bf16", device=self.machine.device.type)
        made = Trainer(config, *self.our_models(), None)

        def work() -> Mapping[str, Tensor]:
            losses = made.step(self.real)
            return {name: losses[name] for name in ("d_loss", "g_loss")}

        return work


def with_algorithm_search(work: Work, wanted: bool) -> Work:
    """``work`` with torch.backends.cudnn.benchmark set for it alone."""

    def run() -> Mapping[str, Tensor]:
        torch.backends.cudnn.benchmark = wanted
        return work()

    return run


def step(machine: Machine, batch: int = 128) -> Iterator[Record]:
    """Whole steps taking turns: eager, eager tuned, eager captured by hand, and Trainer.step."""
    setting = Setting(machine, batch)
    providers = {
        EAGER: lambda: with_algorithm_search(setting.classic(), False),
        TUNED: lambda: with_algorithm_search(setting.tuned(), True),
        GRAPHED: lambda: with_algorithm_search(setting.graphed(), True),
        OURS: lambda: with_algorithm_search(setting.trainer(), False),
        f"{OURS}, cudnn.benchmark": lambda: with_algorithm_search(setting.trainer(), True),
    }
    yield measure(machine, batch, providers)


def large_step(machine: Machine) -> Iterator[Record]:
    """The same at batch 1024."""
    yield from step(machine, 1024)


def compiled_step(machine: Machine, mode: str = "default") -> Iterator[Record]:
    """torch.compile of the tuned step's forward passes beside eager; compiling counts as the first call."""
    setting = Setting(machine, 128)
    providers = {
        EAGER: lambda: with_algorithm_search(setting.classic(), False),
        f"torch.compile {mode} of {TUNED}": lambda: with_algorithm_search(setting.compiled(mode), True),
    }
    yield measure(machine, 128, providers)


def autotuned_step(machine: Machine) -> Iterator[Record]:
    yield from compiled_step(machine, "max-autotune")


def measure(machine: Machine, batch: int, providers: Mapping[str, Callable[[], Work]]) -> Record:
    """Check the first iteration's losses, warm up, time in turns.

    Returns:
        As gpu_machine.measure; beside it first_call_s, the first iteration's d_loss and g_loss, peak_memory_mib (of
        tensors) and reserved_mib (with what graphs and the allocator keep), models and optimizers included, and
        times_floor, the time over that of the arithmetic alone at an H200's nominal rate.
    """
    case = f"DCGAN-64 training step, batch {batch}"
    record: Record = {"case": case, "baseline": None, "providers": {}}
    works: dict[str, Work] = {}
    expected: dict[str, Tensor] = {}
    for name, make in providers.items():
        found: Record = {}
        record["providers"][name] = found
        if name in machine.without:
            found["skipped"] = "it broke the device before"
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
            # The first call's search for algorithms takes memory that no other call takes.
            machine.forget_peak()
            for _ in range(machine.size(WARM_UP, 6)):
                work()
            machine.synchronize()
            peak, most_reserved = machine.peak()
            found["peak_memory_mib"] = harness.significant((peak - allocated) / 2**20)
            found["reserved_mib"] = harness.significant((most_reserved - reserved) / 2**20)
        except Exception as error:
            found.clear()
            found.update(reason(error))
            if not machine.alive():
                record["fatal"] = name
                return record
            continue
        works[name] = work
        if not expected:
            expected, record["baseline"] = losses, name
    samples = machine.race(works, SAMPLE_MS)
    add_times(record, samples, flop=roofline.step_flop(batch))
    for name, work in works.items():
        found = record["providers"][name]
        floor_ms = roofline.step_flop(batch) / roofline.NOMINAL_TFLOPS / 1e9
        found["times_floor"] = harness.significant(found["time_ms"]["median"] / floor_ms)
        if not all(loss.isfinite() for loss in work().values()):
            found["failed"] = "expected finite losses after timing, got NaN or infinity"
    return record
