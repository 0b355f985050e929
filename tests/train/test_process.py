"""Settings of the whole process: threads and signals."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from gan_fast.train.process import fastest_threads, stopping_signals


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Machine:
    """A simulated clock and step. Its time depends on torch's threads; the first step per number takes longer."""

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
        # The gain is too small to be distinguished from noise.
        ({1: 0.19, 2: 0.25, 4: 0.2}, 4),
    ],
)
def test_fastest_number_of_threads_is_set(four_threads, seconds, chosen):
    machine = Machine(seconds)
    choice = fastest_threads(machine.step, machine.clock)
    assert torch.get_num_threads() == choice.threads == chosen
    assert choice.times_ms == pytest.approx({n: 1e3 * s for n, s in seconds.items()})
    assert f"threads: {chosen} ({1e3 * seconds[chosen]:.3g} ms per step" in str(choice)
    assert "e+" not in str(choice)


@pytest.mark.parametrize(("step_s", "rounds"), [(10.0, 2), (0.001, 20), (0.1, 4)])
def test_measurement_ends_after_its_time_budget(four_threads, step_s, rounds):
    machine = Machine(dict.fromkeys((1, 2, 4), step_s), warm_up_s=0.0)
    fastest_threads(machine.step, machine.clock)
    assert machine.steps == [1, 2, 4] * rounds


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
@pytest.mark.parametrize("ignored", [False, True])
def test_hangup_stops_the_training_unless_it_is_ignored(ignored):
    stopped = []
    # nohup starts programs with SIGHUP ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else lambda *_: pytest.fail("not handled"))
    try:
        with stopping_signals(lambda: stopped.append(True)) as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received.number == (None if ignored else signal.SIGHUP)
        assert stopped == ([] if ignored else [True])
    finally:
        signal.signal(signal.SIGHUP, before)
