"""Optimizers set by the user: each works, or is refused when it is set."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from train.players import LATENT_DIM, REAL, NaNObjective, assert_same_state, make_players, make_trainer
from train.recorder import NoReadBack

from gan_fast.train import TrainConfig, Trainer


class PythonState(torch.optim.Optimizer):
    """Keeps Python numbers in its state, its groups and itself, and lists of tensors; replaces tensors."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr, "calls": 0})
        self.total = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.total += 1
        for group in self.param_groups:
            group["calls"] += 1
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state.setdefault("history", []).append(p.grad.mean())
                state["mean"] = state.get("mean", torch.zeros_like(p)) * 0.9 + p.grad
                p.sub_(state["mean"], alpha=group["lr"] / state["step"])


class Decaying(torch.optim.Adam):
    """Does more in a step than torch's fused Adam."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.9)
        return super().step(closure)


class Wrapper(torch.optim.Optimizer):
    """Wraps another optimizer."""

    def __init__(self, base):
        super().__init__(base.param_groups[0]["params"], {"lr": 0.1})
        self.base = base

    def step(self, closure=None):
        self.base.step()


optim = torch.optim
OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, 1e-3),
    "SGD, momentum": lambda p: optim.SGD(p, 1e-3, momentum=0.9, weight_decay=0.1),
    "SGD, nesterov, foreach": lambda p: optim.SGD(p, 1e-3, momentum=0.9, nesterov=True, foreach=True),
    "SGD, fused": lambda p: optim.SGD(p, 1e-3, momentum=0.9, fused=True),
    "Adam": lambda p: optim.Adam(p, 1e-3),
    "Adam, foreach": lambda p: optim.Adam(p, 1e-3, foreach=True),
    "Adam, fused, amsgrad": lambda p: optim.Adam(p, 1e-3, amsgrad=True, fused=True),
    "AdamW, fused, groups": lambda p: optim.AdamW([{"params": p[:2]}, {"params": p[2:], "lr": 1e-4}], 1e-3, fused=True),
    "Adam, one group fused": lambda p: optim.Adam([{"params": p[:2], "fused": True}, {"params": p[2:]}]),
    "AdamW, foreach": lambda p: optim.AdamW(p, 1e-3, foreach=True),
    "Adagrad": lambda p: optim.Adagrad(p, 1e-3),
    "Adagrad, fused": lambda p: optim.Adagrad(p, 1e-3, fused=True),
    "Adadelta": lambda p: optim.Adadelta(p),
    "Adamax": lambda p: optim.Adamax(p),
    "ASGD": lambda p: optim.ASGD(p),
    "NAdam": lambda p: optim.NAdam(p),
    "RAdam": lambda p: optim.RAdam(p),
    "RMSprop": lambda p: optim.RMSprop(p, 1e-3, centered=True, momentum=0.9),
    "Rprop": lambda p: optim.Rprop(p, 1e-4),
    "Adafactor": lambda p: optim.Adafactor(p),
    "a subclass with Python numbers": PythonState,
    "a subclass of a fused one": lambda p: Decaying(p, fused=True),
    "a wrapper": lambda p: Wrapper(optim.Adam(p)),
}


def two_trainers(name):
    """Return two equal trainers, in which G and D both have the optimizer."""
    made = []
    for _ in range(2):
        trainer = make_trainer(data=False)
        trainer.g_optimizer = OPTIMIZERS[name](list(trainer.generator.parameters()))
        trainer.d_optimizer = OPTIMIZERS[name](list(trainer.discriminator.parameters()))
        made.append(trainer)
    return made


def python_numbers(optimizer):
    return {
        "attributes": {k: v for k, v in vars(optimizer).items() if isinstance(v, int)},
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_skipped_step_changes_neither_model_nor_optimizer(name):
    plain, skipping = two_trainers(name)
    objective = skipping.objective
    for t in range(4):
        for _ in range(1 + t % 2):
            skipping.objective = NaNObjective(objective)
            assert skipping.step(REAL)["skipped"] == 1
        skipping.objective = objective
        # A skipped step does draw latents.
        skipping.latent_rng.set_state(plain.latent_rng.get_state())
        assert skipping.step(REAL)["skipped"] == 0
        plain.step(REAL)
        for kind in ("generator", "discriminator", "g_optimizer", "d_optimizer"):
            a, b = getattr(plain, kind), getattr(skipping, kind)
            assert_same_state(a.state_dict(), b.state_dict())
            if "optimizer" in kind:
                assert python_numbers(a) == python_numbers(b)


# The others read their step count, which they keep on the CPU.
NOT_WAITING = ("SGD", "SGD, momentum", "SGD, fused", "Adam, fused, amsgrad", "Adagrad, fused", "RMSprop", "Rprop")


@pytest.mark.parametrize("name", NOT_WAITING)
def test_host_does_not_wait(name):
    trainer = two_trainers(name)[0]
    trainer.step(REAL)
    with NoReadBack():
        trainer.step(REAL)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_training_equals_an_uninterrupted_one(name):
    whole, half = two_trainers(name)
    second = two_trainers(name)[0]
    for _ in range(2):
        half.step(REAL)
    second.load_state_dict(copy.deepcopy(half.state_dict()))
    if "Python" in name or "wrapper" in name:
        # Trainer saves only an optimizer's state, not its other attributes.
        for kind in ("g_optimizer", "d_optimizer"):
            target, source = getattr(second, kind), getattr(half, kind)
            if "wrapper" in name:
                target.base.load_state_dict(source.base.state_dict())
            else:
                target.total, target.param_groups[0]["calls"] = 2, 2
    for _ in range(2):
        second.step(REAL)
    for _ in range(4):
        whole.step(REAL)
    assert_same_state(second.state_dict(), whole.state_dict())


def test_loading_and_training_does_not_change_the_loaded_state():
    first, second = two_trainers("a subclass with Python numbers")
    first.step(REAL)
    saved = first.state_dict()
    before = copy.deepcopy(saved)
    second.load_state_dict(saved)
    second.step(REAL)
    assert_same_state(saved, before)


def test_state_of_another_optimizer_is_refused():
    first, second = make_trainer(data=False), two_trainers("SGD")[0]
    first.step(REAL)
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(RuntimeError, match=r"expected g_optimizer of type torch.optim.adam.Adam, as in the state, got"):
        second.load_state_dict(first.state_dict())
    assert_same_state(second.state_dict(), before)


def foreign(trainer):
    return optim.SGD(copy.deepcopy(trainer.generator).parameters(), 0.1)


REFUSED = {
    "not an optimizer": (lambda t: "adam", TypeError, r"expected an optimizer \(torch.optim.Optimizer\), got str"),
    "a scaler": (lambda t: torch.amp.GradScaler("cpu"), TypeError, r"got GradScaler"),
    "none": (lambda t: None, TypeError, r"got NoneType"),
    "a scheduler": (lambda t: lr_scheduler.StepLR(t.g_optimizer, 1), TypeError, r"got StepLR"),
    "a closure": (lambda t: optim.LBFGS(t.generator.parameters()), ValueError, r"needs no closure, got LBFGS"),
    "a copy's": (foreign, ValueError, r"the trainer's Sequential, got 6 of 6 that are not .*missing 1.weight, 1.bias"),
    "D's": (lambda t: optim.SGD(t.discriminator.parameters(), 0.1), ValueError, r"got 8 of 8 that are not"),
    "some of it": (
        lambda t: optim.SGD(list(t.generator.parameters())[1:], 0.1),
        ValueError,
        r"missing 1.weight; call requires_grad_",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_optimizer_is_refused_when_it_is_set(name):
    make, error, message = REFUSED[name]
    trainer = make_trainer(data=False)
    before = trainer.g_optimizer
    with pytest.raises(error, match=r"^Trainer\.g_optimizer: .*" + message):
        trainer.g_optimizer = make(trainer)
    assert trainer.g_optimizer is before


def test_optimizer_may_leave_out_frozen_parameters():
    trainer = make_trainer(data=False)
    trainer.generator[1].weight.requires_grad_(False)
    trainer.g_optimizer = optim.SGD([p for p in trainer.generator.parameters() if p.requires_grad], 0.1)
    trainer.step(REAL)


def test_scheduler_changes_the_learning_rate():
    trainer = make_trainer(data=False)
    scheduler = lr_scheduler.ExponentialLR(trainer.g_optimizer, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            trainer.step(REAL)
            scheduler.step()
    assert trainer.g_optimizer.param_groups[0]["lr"] == pytest.approx(2e-4 / 8)


def test_skipped_step_undoes_what_an_optimizer_hook_did():
    trainer = make_trainer(data=False)
    trainer.d_optimizer.register_step_post_hook(
        lambda optimizer, *_: [p.data.mul_(0.5) for p in optimizer.param_groups[0]["params"]] and None
    )
    trainer.step(REAL)
    before = copy.deepcopy(trainer.discriminator.state_dict())
    trainer.objective = NaNObjective(trainer.objective)
    trainer.step(REAL)
    assert_same_state(trainer.discriminator.state_dict(), before)


def test_found_inf_is_removed_from_the_optimizer():
    trainer = make_trainer(data=False)
    trainer.step(REAL)
    assert not hasattr(trainer.g_optimizer, "found_inf")


def test_complex_and_sparse_parameters_train():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 64, sparse=True)
            self.phase = nn.Parameter(torch.ones(64, dtype=torch.complex64))

        def forward(self, z):
            x = self.table(z.argmax(1) % 3) * (self.phase * 1j).abs()
            return x.view(-1, 1, 8, 8).tanh()

    discriminator = make_players(torch.float32)[1]
    trainer = Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu"), Embedded(), discriminator)
    trainer.g_optimizer = optim.SGD(trainer.generator.parameters(), 0.1)
    before = trainer.generator.table.weight.detach().clone()
    assert trainer.step(REAL)["skipped"] == 0
    assert not torch.equal(before, trainer.generator.table.weight)
    assert trainer.is_finite()
