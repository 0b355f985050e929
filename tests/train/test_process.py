"""What the command line sets for its whole process."""

from __future__ import annotations

import pytest
import torch

from gan_fast.train.process import fastest_threads


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Machine:
    """A clock, and a step whose time depends on torch's number of threads; a number's first step takes longer."""

    def __init__(self, seconds: dict[int, float], warm_up_s: float = 5.0) -> None:
        self.seconds, self.warm_up_s = seconds, warm_up_s
        self.now, self.steps = 0.0, []

    def step(self) -> None:
        threads = torch.get_num_threads()
        self.now += self.seconds[threads] + (self.warm_up_s if threads not in self.steps else 0)
        self.steps.append(threads)

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 0.8, 2: 0.4, 4: 0.2}, 4),
        ({1: 0.8, 2: 1.2345, 4: 60.0}, 1),
        ({1: 0.1, 2: 0.5, 4: 0.9}, 1),
        ({1: 0.5, 2: 0.3, 4: 0.6}, 2),
        # Too small a gain to tell from noise.
        ({1: 0.19, 2: 0.25, 4: 0.2}, 4),
    ],
)
def test_the_fastest_number_of_threads_is_set(four_threads, seconds, chosen):
    machine = Machine(seconds)
    choice = fastest_threads(machine.step, machine.clock)
    assert torch.get_num_threads() == choice.threads == chosen
    assert choice.times_ms == pytest.approx({n: 1e3 * s for n, s in seconds.items()})
    assert f"threads: {chosen} ({1e3 * seconds[chosen]:.3g} ms a step" in str(choice)
    assert "e+" not in str(choice)


@pytest.mark.parametrize(("step_s", "rounds"), [(10.0, 2), (0.001, 20), (0.1, 4)])
def test_measuring_ends_when_its_budget_is_spent(four_threads, step_s, rounds):
    machine = Machine(dict.fromkeys((1, 2, 4), step_s), warm_up_s=0.0)
    fastest_threads(machine.step, machine.clock)
    assert machine.steps == [1, 2, 4] * rounds
