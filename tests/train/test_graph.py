"""Training with CUDA graphs equals training without them, and a failed capture changes nothing.

Each test runs on a CPU with a recorder in place of CUDA graphs, and on a GPU if there is one.
"""

import contextlib
import copy
import functools
import gc
import itertools
import logging
import random
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from train.players import LATENT_DIM, assert_same_state, make_images, make_players
from train.recorder import RecordedGraphs

import gan_fast
from gan_fast import models, ops
from gan_fast.train import TrainConfig, Trainer, graph, loop

# Iterations before the first capture: one that creates the moments, then the warm-up.
EAGER_STEPS = graph.WARM_UP_STEPS + 1


class CountedGraphs(graph.CudaGraphs):
    """CUDA graphs that count their calls, as the recorder does."""

    def __init__(self, device):
        super().__init__(device, shared_pool=True)
        self.warm_ups = self.captures = self.replays = 0

    def warm_up(self, function):
        self.warm_ups += 1
        return super().warm_up(function)

    def capture(self, function, generator):
        self.captures += 1
        run, values = super().capture(function, generator)

        def replay():
            self.replays += 1
            run()

        return replay, values


needs_gpu = pytest.mark.gpu


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request, monkeypatch):
    # gan_fast's kernels for the losses are not dispatched, so the recorder would miss them.
    with gan_fast.use_backend("reference" if request.param == "cpu" else "auto"):
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        monkeypatch.setattr(
            loop, "graphs_on", lambda device: RecordedGraphs() if device.type == "cpu" else CountedGraphs(device)
        )
        yield request.param


def batches(count, size=8, seed=2, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return [(torch.rand(size, 1, 8, 8, generator=rng) * 2 - 1).to(dtype) for _ in range(count)]


def make_pair(device, change=lambda generator, discriminator: None, **options):
    """Return two trainers of equal models: the first uses a graph, the second does not."""
    trainers = []
    for cuda_graph in ("auto", "off"):
        players = make_players(torch.float32)
        change(*players)
        config = {"latent_dim": LATENT_DIM, "batch_size": 8, "precision": "fp32", "device": device, **options}
        trainers.append(Trainer(TrainConfig(cuda_graph=cuda_graph, **config), *players, make_images()))
    return trainers


def counts(trainer):
    graphs = next(iter(trainer._captured_steps.values()))._graphs
    return graphs.warm_ups, graphs.captures, graphs.replays


def assert_same(a, b, device):
    """Assert equality: to the last bit on a CPU, up to rounding on a GPU, which may sum in another order."""
    if device == "cpu":
        assert_same_state(a, b)
    else:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def random_states(device):
    """Return the states of the generators that dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None


def set_random_states(states):
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])


def run_both(pair, real, device):
    """Run one iteration of each trainer from equal random states, and compare and return the results."""
    states = random_states(device)
    have = pair[0].step(real)
    set_random_states(states)
    want = pair[1].step(real)
    assert_same(have, want, device)
    return have


def assert_same_trainers(pair, device):
    assert_same(pair[0].state_dict(), pair[1].state_dict(), device)
    for a, b in zip(pair[0].generator.parameters(), pair[1].generator.parameters()):
        assert_same(a.grad, b.grad, device)


@pytest.mark.parametrize(("d_steps", "precision"), [(1, "fp32"), (2, "bf16")])
def test_training_with_a_graph_equals_training_without(device, d_steps, precision):
    pair = make_pair(device, d_steps=d_steps, precision=precision)
    for real in batches(10):
        run_both(pair, [real * (1 - 0.1 * i) for i in range(d_steps)], device)
        assert_same_trainers(pair, device)
    assert pair[0].steps_done == 10
    assert counts(pair[0]) == (EAGER_STEPS, 1, 10 - EAGER_STEPS)


def test_fit_logs_the_same_rows_with_a_graph(device):
    pair = make_pair(device, steps=12, log_every=4, d_steps=2)
    rows = [[{k: v for k, v in row.items() if "_s" not in k} for row in trainer.fit()] for trainer in pair]
    assert [row["step"] for row in rows[0]] == [4, 8, 12]
    for have, want in zip(*rows):
        assert_same(have, want, device)
    assert_same_trainers(pair, device)
    assert counts(pair[0])[1] == 1


def test_later_steps_do_not_change_the_results_of_a_step(device):
    trainer = make_pair(device)[0]
    results = [trainer.step(real) for real in batches(8)]
    copies = [{name: value.clone() for name, value in result.items()} for result in results]
    trainer.step(batches(1, seed=9)[0])
    for result, kept in zip(results, copies):
        assert_same_state(result, kept)
    assert len({float(result["d_loss"]) for result in results}) == 8


def test_graph_does_not_freeze_the_average_weight_or_the_latents(device):
    pair = make_pair(device, ema_decay=0.35)
    weights, states = [], []
    for real in batches(9):
        run_both(pair, real, device)
        weights.append(float(pair[0]._average_weight))
        states.append(pair[0].latent_rng.get_state())
    assert weights == [1 - min(0.35, t / (t + 9)) for t in range(1, 10)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(states))
    assert_same_trainers(pair, device)


def test_replay_skips_updates_with_non_finite_gradients(device):
    pair = make_pair(device)
    skipped = []
    for t, real in enumerate(batches(10)):
        if t in (1, 5, 6):
            real[0, 0, 0, 0] = float("nan")
        skipped.append(int(run_both(pair, real, device)["skipped"]))
        assert_same_trainers(pair, device)
    assert skipped == [0, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    assert (int(pair[0].skipped_steps), int(pair[0].skipped_in_a_row)) == (3, 0)
    assert counts(pair[0]) == (EAGER_STEPS, 1, 10 - EAGER_STEPS)


def test_dropout_draws_new_masks_in_each_replay(device):
    pair = make_pair(device, lambda g, d: d.insert(2, nn.Dropout(0.3)))
    losses = [float(run_both(pair, real, device)["d_loss"]) for real in batches(1) * 8]
    assert len(set(losses)) == 8
    assert_same_trainers(pair, device)
    assert counts(pair[0])[2] == 8 - EAGER_STEPS


def set_rate(trainer):
    for group in (*trainer.d_optimizer.param_groups, *trainer.g_optimizer.param_groups):
        group["lr"] *= 0.1


def freeze(trainer):
    trainer.discriminator[0].weight.requires_grad_(False)


def evaluate(trainer):
    trainer.discriminator[3].eval()


def replace_weight(trainer):
    layer = trainer.discriminator[0]
    layer.weight.data = layer.weight.data.clone() * 1.5


def swap_activation(trainer):
    trainer.discriminator[1] = nn.ReLU()


def double_objective(trainer):
    trainer.objective = DoubledObjective(trainer.objective)


def replace_average(trainer):
    weight = trainer.ema_generator[1].weight
    weight.data = weight.data.clone()


def replace_buffer(trainer):
    norm = trainer.discriminator[3]
    norm.running_mean = norm.running_mean.clone() + 1


def replace_counter(trainer):
    trainer.skipped_steps = trainer.skipped_steps.clone()


def load_own_state(trainer):
    trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))


def load_moments(trainer):
    trainer.d_optimizer.load_state_dict(copy.deepcopy(trainer.d_optimizer.state_dict()))


class DoubledObjective:
    def __init__(self, objective):
        self.objective = objective

    g_needs_real = False

    def d_loss(self, real, fake):
        loss, means = self.objective.d_loss(real, fake)
        return loss * 2, means

    def g_loss(self, fake, real=None):
        return self.objective.g_loss(fake, real) * 2


@pytest.mark.parametrize(
    "change",
    [
        set_rate,
        freeze,
        evaluate,
        replace_weight,
        replace_average,
        replace_buffer,
        replace_counter,
        swap_activation,
        double_objective,
        load_own_state,
        load_moments,
    ],
)
def test_change_between_steps_leads_to_a_new_capture(device, change):
    pair = make_pair(device)
    for real in batches(6):
        run_both(pair, real, device)
    for trainer in pair:
        change(trainer)
    for real in batches(6, seed=3):
        run_both(pair, real, device)
        assert_same_trainers(pair, device)
    assert counts(pair[0]) == (EAGER_STEPS + graph.WARM_UP_STEPS, 2, 12 - EAGER_STEPS - graph.WARM_UP_STEPS)


def test_graph_uses_weights_that_were_loaded_in_place(device):
    pair = make_pair(device)
    other = make_players(torch.float32, seed=5)[0].state_dict()
    for real in batches(6):
        run_both(pair, real, device)
    for trainer in pair:
        trainer.generator.load_state_dict(other)
    run_both(pair, batches(1)[0], device)
    assert_same_trainers(pair, device)
    assert counts(pair[0])[1] == 1


def test_single_batch_of_another_size_runs_without_the_graph(device):
    pair = make_pair(device)
    for real in [*batches(5), *batches(1, 3), *batches(2), *batches(1, 3), *batches(2), *batches(2, 3), *batches(2)]:
        run_both(pair, real, device)
        assert_same_trainers(pair, device)
    assert counts(pair[0]) == (EAGER_STEPS + 4, 1, 15 - EAGER_STEPS - 4)


def test_graph_is_not_used_under_another_backend(device):
    trainer = make_pair(device)[0]
    for real in batches(5):
        trainer.step(real)
    with gan_fast.use_backend("auto" if device == "cpu" else "reference"):
        trainer.step(batches(1)[0])
    assert counts(trainer) == (EAGER_STEPS + 1, 1, 5 - EAGER_STEPS)


def test_change_of_the_batch_size_leads_to_a_new_capture(device):
    pair = make_pair(device)
    for real in [*batches(5), *batches(5, 3)]:
        run_both(pair, real, device)
    assert_same_trainers(pair, device)
    assert counts(pair[0]) == (EAGER_STEPS + graph.WARM_UP_STEPS, 2, 10 - EAGER_STEPS - graph.WARM_UP_STEPS)


@pytest.mark.parametrize("at", [2, 6])
def test_resumed_training_with_a_graph_equals_an_uninterrupted_one(device, at):
    def trainer():
        return make_pair(device, lambda g, d: d.insert(2, nn.Dropout(0.3)), d_steps=2)[0]

    data = batches(12)
    torch.manual_seed(5)
    whole, half = trainer(), trainer()
    torch.manual_seed(5)
    for real in data:
        whole.step(real)
    after = whole.state_dict()
    torch.manual_seed(5)
    for real in data[:at]:
        half.step(real)
    saved = copy.deepcopy(half.state_dict())
    # Load the state into a trainer that already has a graph and has drawn other latents.
    resumed = trainer()
    for real in batches(7, seed=8):
        resumed.step(real)
    resumed.load_state_dict(saved)
    for real in data[at:]:
        resumed.step(real)
    assert_same(resumed.state_dict(), after, device)
    assert counts(resumed)[1] == 2


class PenalizedObjective:
    """An objective whose D loss includes R1 on fixed points, which needs a double backward."""

    def __init__(self, objective, discriminator, points):
        self.objective, self.discriminator, self.points = objective, discriminator, points

    g_needs_real = False

    def d_loss(self, real, fake):
        loss, means = self.objective.d_loss(real, fake)
        x = self.points.detach().requires_grad_()
        with torch.autocast(x.device.type, enabled=False):
            (slope,) = torch.autograd.grad(self.discriminator(x).sum(), x, create_graph=True)
        return loss + 5 * slope.square().sum((1, 2, 3)).mean(), means

    def g_loss(self, fake, real=None):
        return self.objective.g_loss(fake, real)


def test_double_backward_of_a_gradient_penalty_is_captured(device):
    pair = make_pair(device)
    for trainer in pair:
        trainer.objective = PenalizedObjective(trainer.objective, trainer.discriminator, batches(1)[0].to(device))
    for real in batches(8):
        run_both(pair, real, device)
        assert_same_trainers(pair, device)
    assert counts(pair[0]) == (EAGER_STEPS, 1, 8 - EAGER_STEPS)


def without_norm(generator, discriminator):
    discriminator[3] = nn.Identity()


REGULARIZED = [
    {"objective": "wasserstein", "penalty": "gradient_penalty", "d_steps": 2},
    {"objective": "relativistic", "penalty": ("r1", "r2", "dragan")},
    {"objective": "hinge", "regularizers": ("spectral_norm", "weight_clipping", "instance_noise"), "clip_value": 0.1},
    {"update": "one_stage", "penalty": "r1"},
]


@pytest.mark.parametrize("options", REGULARIZED, ids=lambda options: " ".join(map(str, options.values())))
def test_penalties_and_regularizers_are_captured(device, options, monkeypatch):
    # The shortcut for plain CPU tensors bypasses the dispatcher, so the recorder would miss these ops.
    monkeypatch.setattr(ops.dispatch, "is_plain_cpu", lambda *_: False)
    with gan_fast.use_backend("auto" if "update" in options else gan_fast.backends.requested()):
        pair = make_pair(device, without_norm, steps=20, **options)
        for real in batches(8):
            run_both(pair, real, device)
            assert_same_trainers(pair, device)
        assert counts(pair[0]) == (EAGER_STEPS, 1, 8 - EAGER_STEPS)


def test_steps_with_and_without_penalties_have_separate_graphs(device):
    pair = make_pair(device, without_norm, penalty="gradient_penalty", penalty_every=3)
    for real in batches(16):
        run_both(pair, real, device)
        assert_same_trainers(pair, device)
    graphs = next(iter(pair[0]._captured_steps.values()))._graphs
    assert len(pair[0]._captured_steps) == 2
    assert graphs.captures == 2
    assert graphs.replays == 16 - 2 * EAGER_STEPS + 1


def test_fused_dcgan_is_captured(device):
    trainers = []
    for cuda_graph in ("on", "off"):
        torch.manual_seed(1)
        networks = models.DCGANGenerator(LATENT_DIM, 1, 16, 4), models.DCGANDiscriminator(1, 16, 4)
        config = TrainConfig(device=device, cuda_graph=cuda_graph, precision="fp32")
        trainers.append(Trainer(config, *networks))
    for real in torch.rand(7, 8, 1, 16, 16) * 2 - 1:
        run_both(trainers, real, device)
    assert_same_trainers(trainers, device)
    assert counts(trainers[0])[1:] == (1, 7 - EAGER_STEPS)


class Uncapturable(nn.Module):
    """A layer that does something that a graph cannot record."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        if self.kind == "item":
            return x * (1 + 0 * x.detach().abs().sum().item())
        if self.kind == "branch":
            return x if x.detach().sum() < float("inf") else -x
        if self.kind == "python random":
            return x * random.uniform(0.9, 1.1)
        if self.kind == "numpy random":
            return x * float(np.random.uniform(0.9, 1.1))
        return x


@pytest.mark.parametrize("kind", ["item", "branch", "python random", "numpy random"])
def test_failed_capture_does_not_change_the_training(device, kind, caplog):
    pair = make_pair(device, lambda g, d: d.insert(1, Uncapturable(kind)))
    for real in batches(7):
        states = random.getstate(), np.random.get_state()
        have = pair[0].step(real)
        random.setstate(states[0])
        np.random.set_state(states[1])
        assert_same(have, pair[1].step(real), device)
        assert_same_trainers(pair, device)
    assert counts(pair[0]) == (EAGER_STEPS, 1, 0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("the training step runs kernel by kernel, not as a CUDA graph: capturing it failed")
    assert ("drawn on the host" in lines[0]) == ("random" in kind)


# "item" fails during the capture, "python random" after it.
@pytest.mark.parametrize("kind", ["item", "python random"])
def test_failed_capture_of_a_required_graph_raises_and_changes_nothing(device, kind):
    trainer = make_pair(device, lambda g, d: d.insert(1, Uncapturable(kind)))[1]
    trainer = Trainer(
        TrainConfig(latent_dim=LATENT_DIM, device=device, cuda_graph="on"), trainer.generator, trainer.discriminator
    )
    data = batches(EAGER_STEPS)
    for real in data:
        trainer.step(real)
    before = copy.deepcopy(trainer.state_dict())
    weights = [*trainer.generator.parameters(), *trainer.discriminator.parameters()]
    grads = [p.grad for p in weights]
    for _ in range(2):
        with pytest.raises(
            RuntimeError,
            match=r"^Trainer.step: expected a step that can be captured, as cuda_graph is 'on', got: captur",
        ):
            trainer.step(data[0])
        assert_same_state(trainer.state_dict(), before)
        assert all(p.grad is grad for p, grad in zip(weights, grads))
    assert all(p.requires_grad for p in trainer.discriminator.parameters())


def test_error_in_the_model_is_raised_to_the_caller(device):
    trainer = make_pair(device)[0]
    for real in batches(5):
        trainer.step(real)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(RuntimeError):
        trainer.step(torch.zeros(8, 2, 8, 8))
    assert trainer.steps_done == before["steps_done"]
    trainer.step(batches(1)[0])
    assert counts(trainer)[1:] == (1, 3)


HOOKS = {
    "of a module": lambda t, hook: t.generator[1].register_forward_hook(hook),
    "before a module": lambda t, hook: t.discriminator[0].register_forward_pre_hook(hook),
    "of a backward": lambda t, hook: t.discriminator[2].register_full_backward_hook(hook),
    "of a gradient": lambda t, hook: t.discriminator[0].weight.register_hook(lambda grad: hook(grad)),
    "after a gradient": lambda t, hook: t.generator[1].weight.register_post_accumulate_grad_hook(hook),
    "of an optimizer": lambda t, hook: t.d_optimizer.register_step_post_hook(hook),
    "global": lambda t, hook: nn.modules.module.register_module_forward_hook(hook),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_called_in_every_step(device, kind, caplog):
    trainer, calls = make_pair(device)[0], []
    for real in batches(5):
        trainer.step(real)
    handle = HOOKS[kind](trainer, lambda *_: calls.append(1))
    try:
        for real in batches(3):
            calls_before = len(calls)
            trainer.step(real)
            assert len(calls) > calls_before
    finally:
        handle.remove()
    assert [r.getMessage() for r in caplog.records if "hooks" in r.getMessage()] == [
        r.getMessage() for r in caplog.records
    ]
    assert len(caplog.records) == 1
    trainer.step(batches(1)[0])
    assert counts(trainer)[1:] == (1, 5 - EAGER_STEPS + 1)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_step_is_not_captured_under_anomaly_detection(device, caplog):
    trainer = make_pair(device)[0]
    with torch.autograd.detect_anomaly():
        for real in batches(5):
            trainer.step(real)
    assert counts(trainer) == (0, 0, 0)
    assert "anomaly detection reads every gradient" in caplog.text


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm`:FutureWarning")
def test_both_spectral_norms_of_torch_are_captured(device):
    def change(generator, discriminator):
        torch.manual_seed(3)
        discriminator[0] = nn.utils.spectral_norm(discriminator[0])
        discriminator[2] = nn.utils.parametrizations.spectral_norm(discriminator[2])

    pair = make_pair(device, change)
    for real in batches(8):
        run_both(pair, real, device)
        assert_same_trainers(pair, device)
    assert counts(pair[0])[1:] == (1, 8 - EAGER_STEPS)


def test_settings_that_change_in_every_step_are_reported_once(device, caplog):
    pair = make_pair(device)
    for t, real in enumerate(batches(30)):
        for trainer in pair:
            trainer.g_optimizer.param_groups[0]["lr"] = 1e-3 / (t + 1)
        run_both(pair, real, device)
    assert_same_trainers(pair, device)
    assert counts(pair[0]) == (30, 0, 0)
    assert [r.getMessage() for r in caplog.records] == [
        "the training step keeps running kernel by kernel, not as a CUDA graph: the optimizers' settings changed again "
        "within 2 steps"
    ]


@pytest.mark.parametrize("setting", [torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.conv])
def test_change_of_the_float32_precision_leads_to_a_new_capture(device, setting):
    trainer = make_pair(device)[0]
    real = batches(1)[0]
    try:
        for precision, captures in (("none", 1), ("tf32", 2), ("none", 3)):
            setting.fp32_precision = precision
            for _ in range(EAGER_STEPS + 1):
                trainer.step(real)
            assert counts(trainer)[1] == captures
    finally:
        setting.fp32_precision = "none"


def test_caller_may_overwrite_the_batch_after_the_step(device):
    pair = make_pair(device)
    for real in batches(8):
        batch = real.clone()
        have = pair[0].step(batch)
        batch.zero_()
        assert_same(have, pair[1].step(real), device)
    assert_same_trainers(pair, device)


def test_trainer_with_a_graph_is_freed_without_garbage_collection(device):
    trainer = make_pair(device)[0]
    for real in batches(5):
        trainer.step(real)
    weight = weakref.ref(trainer.discriminator[0].weight)
    gc.collect()
    gc.disable()
    try:
        del trainer
        assert weight() is None
    finally:
        gc.enable()


def test_successful_capture_logs_nothing(device, caplog):
    caplog.set_level(logging.INFO)
    trainer = make_pair(device)[0]
    for real in batches(6):
        trainer.step(real)
    assert not caplog.records


CORRUPTIONS = {
    "weights": lambda t: t.discriminator[0].weight.data.mul_(1.01),
    "buffers": lambda t: t.generator[2].running_mean.add_(1),
    "averages": lambda t: t.ema_generator[1].weight.zero_(),
    "moments": lambda t: [s["exp_avg"].mul_(2) for s in t.g_optimizer.state.values()],
    "counters": lambda t: t.skipped_in_a_row.add_(1),
}


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_graph_with_a_wrong_replay_is_refused(device, kind, required, caplog):
    pair = make_pair(device)
    if required:
        steps = pair[0]._captured_steps
        steps.default_factory = functools.partial(steps.default_factory, required=True)
    for real in batches(EAGER_STEPS):
        run_both(pair, real, device)
    graphs = next(iter(pair[0]._captured_steps.values()))._graphs
    capture = graphs.capture

    def corrupted(function, generator):
        replay, values = capture(function, generator)
        return lambda: (replay(), CORRUPTIONS[kind](pair[0])), values

    graphs.capture = corrupted
    before = copy.deepcopy(pair[0].state_dict())
    grads = [p.grad for p in pair[0].generator.parameters()]
    if required:
        with pytest.raises(RuntimeError, match=f"its first replay gave other {kind} than the step run kernel by"):
            pair[0].step(batches(1)[0])
        assert_same_state(pair[0].state_dict(), before)
        assert all(p.grad is grad for p, grad in zip(pair[0].generator.parameters(), grads))
        return
    for real in batches(3, seed=3):
        run_both(pair, real, device)
        assert_same_trainers(pair, device)
    assert counts(pair[0])[1:] == (1, 1)
    assert [f"gave other {kind} than" in record.getMessage() for record in caplog.records] == [True]


def test_graph_that_differs_by_rounding_is_accepted(device):
    pair = make_pair(device)
    for real in batches(EAGER_STEPS):
        pair[0].step(real)
    graphs = next(iter(pair[0]._captured_steps.values()))._graphs
    capture = graphs.capture

    def rounded(function, generator):
        replay, values = capture(function, generator)
        return lambda: (replay(), [p.data.mul_(1 + 1e-7) for p in pair[0].generator.parameters()]), values

    graphs.capture = rounded
    for real in batches(2):
        pair[0].step(real)
    assert counts(pair[0])[1:] == (1, 2)


class Bank(nn.Module):
    """Identity with a buffer that each forward pass in training grows or replaces."""

    def __init__(self, grows):
        super().__init__()
        self.grows = grows
        self.register_buffer("bank", torch.zeros(1))

    def forward(self, x):
        if self.training:
            mean = x.detach().mean()[None]
            self.bank = torch.cat([self.bank, mean]) if self.grows else self.bank + mean
        return x


@pytest.mark.parametrize("grows", [True, False])
def test_buffer_that_is_replaced_in_each_step_prevents_a_capture(device, grows, caplog):
    pair = make_pair(device, lambda g, d: g.insert(2, Bank(grows)))
    for real in batches(6 if grows else 24):
        run_both(pair, real, device)
        assert_same_trainers(pair, device)
    assert counts(pair[0])[2] == 0
    assert len(caplog.records) == 1
    if grows:
        assert "a buffer is not the same in each step: 'bank' changed" in caplog.text


@pytest.mark.parametrize("kind", ["SGD", "momentum", "not capturable", "Python numbers"])
def test_user_optimizer_is_captured_if_it_allows_it(device, kind, caplog):
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            self.calls = getattr(self, "calls", 0) + 1
            return super().step(closure)

    pair = make_pair(device)
    for trainer in pair:
        params = list(trainer.generator.parameters())
        trainer.g_optimizer = {
            "SGD": lambda p: torch.optim.SGD(p, 1e-3),
            "momentum": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
            "not capturable": lambda p: torch.optim.Adam(p, 1e-3, fused=True),
            "Python numbers": lambda p: Counting(p, 1e-3),
        }[kind](params)
    for t, real in enumerate(batches(7)):
        if t in (0, 5):
            real[0, 0, 0, 0] = float("nan")
        run_both(pair, real, device)
        assert_same_trainers(pair, device)
    captured = kind in ("SGD", "momentum")
    assert (counts(pair[0])[2] > 0) == captured
    assert len(caplog.records) == (not captured)
    if kind == "Python numbers":
        assert "the host must read whether the step is skipped" in caplog.text
        assert pair[0].g_optimizer.calls == pair[1].g_optimizer.calls
    if kind == "not capturable":
        assert "the Adam was made without capturable=True" in caplog.text


def test_cpu_training_has_no_graphs():
    players = make_players(torch.float32)
    assert Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu"), *players)._captured_steps is None
    message = "^TrainConfig: expected device a GPU when cuda_graph is on, got cpu$"
    with pytest.raises(ValueError, match=message):
        Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu", cuda_graph="on"), *players)


class StubGenerator:
    """A generator whose state object stays marked if a capture begins and does not end."""

    def __init__(self, device=None):
        self.state = {"seed": 0, "stuck": False}

    def get_state(self):
        return self.state["seed"]

    def set_state(self, seed):
        self.state["seed"] = seed

    def graphsafe_get_state(self):
        return self.state

    def graphsafe_set_state(self, state):
        self.state = state


def stub_cuda(monkeypatch, graph_type, modes):
    """Replace what a capture calls in torch.cuda; ``modes`` collects the sync-debug modes, the last being current."""
    modes.append(1)
    for name, stub in {
        "Stream": lambda device: None,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda device: None,
        "empty_cache": lambda: None,
        "CUDAGraph": graph_type,
        "default_generators": [StubGenerator()],
        "get_sync_debug_mode": lambda: modes[-1],
        "set_sync_debug_mode": modes.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)


@pytest.mark.parametrize(
    ("function_fails", "end_fails", "shared_pool"),
    [(False, False, True), (False, True, False), (True, False, False), (True, True, True)],
)
def test_capture_restores_the_settings_that_it_changes(monkeypatch, function_fails, end_fails, shared_pool):
    """Checks the order of calls on stubs of torch.cuda."""
    generators, modes, calls = (StubGenerator(), StubGenerator()), [], []
    for index, generator in enumerate(generators):
        generator.set_state(index + 7)

    class StubGraph:
        def register_generator_state(self, generator):
            calls.append(generator)

        def capture_begin(self, pool, capture_error_mode):
            calls.append(pool)
            for generator in generators:
                generator.state["stuck"] = True

        def capture_end(self):
            if end_fails:
                raise RuntimeError("operation failed due to a previous error during capture")
            for generator in generators:
                generator.state["stuck"] = False

        def replay(self):
            calls.append("replay")

    def function():
        calls.append(modes[-1])
        if function_fails:
            raise RuntimeError("called a synchronizing CUDA operation")
        return torch.ones(5)

    stub_cuda(monkeypatch, StubGraph, modes)
    monkeypatch.setattr(torch.cuda, "default_generators", generators[1:])
    monkeypatch.setattr(torch, "Generator", StubGenerator)

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    capture = graph.CudaGraphs(torch.device("cuda", 0), shared_pool=shared_pool).capture
    if function_fails or end_fails:
        # An error of the function takes precedence over CUDA's error about the broken capture.
        with pytest.raises(RuntimeError, match="a synchronizing" if function_fails else "a previous error"):
            capture(function, generators[0])
    else:
        replay, values = capture(function, generators[0])
        replay()
        assert calls[-1] == "replay"
        assert torch.equal(values, torch.ones(5))
    assert calls[:3] == [generators[0], "pool" if shared_pool else None, "error"]
    assert modes == [1, "error", 1]
    assert [generator.state for generator in generators] == [{"seed": seed, "stuck": False} for seed in (7, 8)]


active_captures = []


class ExclusiveGraph:
    """A CUDA graph that cannot be captured while another one is, nor with garbage collection enabled."""

    def capture_begin(self, pool, capture_error_mode):
        if active_captures:
            raise RuntimeError("another capture is active")
        active_captures.append(self)
        assert not gc.isenabled()

    def capture_end(self):
        assert not gc.isenabled()
        active_captures.remove(self)

    def replay(self):
        pass


def test_concurrent_captures_restore_process_wide_settings(monkeypatch):
    """torch's sync-debug mode and Python's garbage collection are settings of the whole process."""
    modes, failed = [], []
    stub_cuda(monkeypatch, ExclusiveGraph, modes)
    start = threading.Barrier(4)

    def work(index):
        assert torch.cuda.get_sync_debug_mode() == "error"
        time.sleep(0.002)
        if index % 2:
            raise RuntimeError("called a synchronizing CUDA operation")
        return torch.ones(1)

    def capture_some(index):
        start.wait(timeout=60)
        for _ in range(5):
            try:
                graph.CudaGraphs(torch.device("cuda", 0)).capture(lambda: work(index))
            except Exception as error:
                failed.append(str(error))

    threads = [threading.Thread(target=capture_some, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == ["called a synchronizing CUDA operation"] * 10
    assert modes == [1, *("error", 1) * 20]
    assert gc.isenabled()


@pytest.mark.parametrize("enabled", [True, False])
def test_capture_runs_no_garbage_collection(enabled, monkeypatch):
    """A collection would break the capture; one before each capture would take longer than the capture."""
    stub_cuda(monkeypatch, ExclusiveGraph, [])
    collections = []
    monkeypatch.setattr(gc, "collect", lambda *_: collections.append("explicit"))
    on_collection = lambda phase, info: collections.append(phase)  # noqa: E731
    before = gc.get_threshold(), gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        gc.callbacks.append(on_collection)
        gc.set_threshold(1, 1, 1)
        graphs = graph.CudaGraphs(torch.device("cuda", 0))
        gc.set_threshold(1_000_000)
        for _ in range(50):
            graphs.capture(lambda: [gc.set_threshold(1), [[] for _ in range(100)], gc.set_threshold(1_000_000)])
        found = list(collections)
        assert gc.isenabled() == enabled
    finally:
        gc.callbacks.remove(on_collection)
        gc.set_threshold(*before[0])
        (gc.enable if before[1] else gc.disable)()
    assert "explicit" not in found
    assert found.count("start") <= 2


def test_graph_of_an_unfinished_capture_is_never_freed(monkeypatch):
    """The allocator keeps using it."""

    class Unending(ExclusiveGraph):
        def capture_begin(self, pool, capture_error_mode):
            graphs.append(weakref.ref(self))

        def capture_end(self):
            raise RuntimeError("operation failed due to a previous error during capture")

    graphs = []
    stub_cuda(monkeypatch, Unending, [])
    monkeypatch.setattr(torch, "Generator", StubGenerator)
    with pytest.raises(RuntimeError, match="a previous error"):
        graph.CudaGraphs(torch.device("cuda", 0)).capture(lambda: None)
    gc.collect()
    assert graphs[0]() is not None
