"""The average of the generator, and buffers of every kind in skipped steps and in resumed trainings."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from train.players import LATENT_DIM, REAL, NaNObjective, assert_same_state, make_players
from train.recorder import NoReadBack

import gan_fast
from gan_fast.train import TrainConfig, Trainer


class Layer(nn.Module):
    """Identity with a buffer of the given kind, which changes in every forward pass in training."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        made = {
            "unit vector": torch.tensor([1.0, 0.0]),
            "mask": torch.tensor([[0.0, float("-inf")], [0.0, 0.0]]),
            "counter": torch.tensor(0),
            "boolean": torch.tensor([True, False]),
            "complex": torch.tensor([1j, 2 + 1j]),
            "float8": torch.ones(2).to(torch.float8_e4m3fn),
            "empty": torch.zeros(0, 2),
            "none": None,
            "none at first": None,
            "grown": torch.zeros(1),
            "grown rarely": torch.zeros(1),
            "replaced": torch.zeros(3),
            "sparse": torch.eye(2).to_sparse(),
            "user's mean": torch.zeros(2),
        }
        if kind == "expanded":
            self.register_buffer("base", torch.zeros(1))
            self.register_buffer("b", self.base.expand(3))
        elif kind == "shared":
            self.register_buffer("b", torch.zeros(2))
            self.other = nn.Module()
            self.other.register_buffer("b", self.b)
        elif kind == "shared statistics":
            self.norm, self.other = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
            self.other.running_mean = self.norm.running_mean
            self.register_buffer("b", self.norm.running_mean)
        elif kind == "view of a weight":
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("b", self.weight.detach()[:1])
        elif kind != "lazy":
            self.register_buffer(
                "b", made["user's mean" if kind == "not persistent" else kind], kind != "not persistent"
            )

    @torch.no_grad()
    def change_buffer(self, x):
        kind, b = self.kind, getattr(self, "b", None)
        if kind == "unit vector":
            b.copy_(nn.functional.normalize(b + x.mean() + 0.1, dim=0))
        elif kind == "mask":
            b[0, 0] += x.mean()
        elif kind == "counter":
            b += 1
        elif kind == "boolean":
            b.logical_not_()
        elif kind == "complex":
            b *= 1j
        elif kind == "float8":
            b.copy_((b.float() + 1).to(b.dtype))
        elif kind in ("none at first", "replaced"):
            self.b = x.mean() + (torch.zeros(3) if b is None else b)
        elif kind == "grown" or (kind == "grown rarely" and len(b) < 3):
            self.b = torch.cat([b, x.mean()[None]])
        elif kind == "expanded":
            self.base += x.mean()
        elif kind == "lazy" and b is None:
            self.register_buffer("b", x.mean()[None])
        elif kind in ("user's mean", "not persistent", "shared", "lazy"):
            b += x.mean()
        elif kind == "shared statistics":
            self.norm.running_mean += x.mean()

    def forward(self, x):
        if self.training:
            self.change_buffer(x)
        return x * self.weight[0] if self.kind == "view of a weight" else x


KINDS = [
    "unit vector", "mask", "counter", "boolean", "complex", "float8", "empty", "none", "none at first", "grown",
    "grown rarely", "replaced", "sparse", "user's mean", "expanded", "shared", "shared statistics",
    "view of a weight", "lazy", "not persistent",
]  # fmt: skip
# Changes of shape, which the device cannot undo.
READ_BACK = {"grown", "grown rarely"}


def trainer_with(kind, **options):
    generator, discriminator = make_players(torch.float32)
    generator.insert(2, Layer(kind))
    discriminator.insert(2, Layer(kind))
    options = {"latent_dim": LATENT_DIM, "batch_size": 8, "device": "cpu", **options}
    return Trainer(TrainConfig(**options), generator, discriminator)


def comparable_buffers(model):
    """Return all buffers, converted to a dtype and a layout that assert_close can compare."""
    return {
        name: None if b is None else b.to_dense().cfloat() if b.is_sparse else b.cfloat()
        for name, b in ((f"{i} {name}", b) for i, m in enumerate(model.modules()) for name, b in m._buffers.items())
    }


@pytest.mark.parametrize("kind", KINDS)
def test_average_copies_buffers_other_than_running_statistics(kind):
    trainer = trainer_with(kind)
    for _ in range(3):
        trainer.step(REAL)
    layer, average = trainer.generator[2], trainer.ema_generator[2]
    if kind == "shared statistics":
        assert average.b is average.norm.running_mean is average.other.running_mean
    elif kind == "view of a weight":
        assert torch.equal(average.b, layer.weight[:1])
    else:
        assert_same_state(comparable_buffers(average), comparable_buffers(layer))
    assert torch.isfinite(trainer.sample(4)).all()


def test_shared_statistics_and_tied_weights_are_averaged_once():
    generator, discriminator = make_players(torch.float32)
    twice, other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    other.weight, other.running_var = twice.weight, twice.running_var
    # Another tensor with the same memory.
    other.running_mean = twice.running_mean.view(8)
    generator[2] = nn.Sequential(twice, other, twice)
    trainer = Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu", ema_decay=0.3), generator, discriminator)
    names = ("weight", "running_mean", "running_var")
    want = {name: getattr(trainer.ema_generator[2][0], name).clone() for name in names}
    for t in range(1, 4):
        trainer.step(REAL)
        decay = min(0.3, t / (t + 9))
        for name in names:
            want[name] = decay * want[name] + (1 - decay) * getattr(twice, name).detach()
    for name in names:
        torch.testing.assert_close(getattr(trainer.ema_generator[2][0], name), want[name])


def test_frozen_weight_may_hold_infinities():
    generator, discriminator = make_players(torch.float32)
    generator.mask = nn.Parameter(torch.tensor([0.0, float("inf")]), requires_grad=False)
    trainer = Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu"), generator, discriminator)
    trainer.step(REAL)
    assert torch.equal(trainer.ema_generator.mask, torch.tensor([0.0, float("inf")]))
    assert trainer.is_finite()


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_skipped_step_restores_all_buffers(kind, at):
    trainer = trainer_with(kind)
    for _ in range(at):
        trainer.step(REAL)
    before, weights = (
        comparable_buffers(trainer.generator) | comparable_buffers(trainer.discriminator),
        trainer.generator[1].weight.clone(),
    )
    trainer.objective = NaNObjective(trainer.objective)
    assert trainer.step(REAL)["skipped"] == 1
    assert_same_state(comparable_buffers(trainer.generator) | comparable_buffers(trainer.discriminator), before)
    assert torch.equal(trainer.generator[1].weight, weights)
    trainer.objective = trainer.objective.objective
    assert trainer.step(REAL)["skipped"] == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in READ_BACK])
def test_host_does_not_wait_for_buffers(kind):
    trainer = trainer_with(kind)
    trainer.step(REAL)
    with NoReadBack():
        trainer.step(REAL)


def test_is_finite_checks_running_statistics_but_not_masks():
    trainer = trainer_with("mask")
    trainer.step(REAL)
    assert trainer.is_finite()
    trainer.ema_generator[3].running_var[0] = float("nan")
    assert not trainer.is_finite()


@pytest.mark.parametrize("into", ["new", "used"])
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_training_restores_all_buffers(kind, into):
    whole, half, second = trainer_with(kind), trainer_with(kind), trainer_with(kind)
    for _ in range(2):
        half.step(REAL)
    saved = copy.deepcopy(half.state_dict())
    if into == "used":
        for _ in range(3):
            second.step(REAL)
    second.load_state_dict(saved)
    for _ in range(2):
        second.step(REAL)
    for _ in range(4):
        whole.step(REAL)
    assert_same_state(comparable_state(second.state_dict()), comparable_state(whole.state_dict()))
    for name in ("generator", "discriminator", "ema_generator"):
        assert_same_state(comparable_buffers(getattr(second, name)), comparable_buffers(getattr(whole, name)))
    if kind == "expanded":
        assert second.generator[2].b.stride() == (0,)
        assert second.generator[2].b.data_ptr() == second.generator[2].base.data_ptr()


def comparable_state(state):
    """Return a state in layouts and dtypes that assert_close can compare."""
    if isinstance(state, dict):
        return {name: comparable_state(value) for name, value in state.items()}
    if not isinstance(state, torch.Tensor):
        return state
    return state.to_dense() if state.is_sparse else state.float() if "float8" in str(state.dtype) else state


@pytest.mark.parametrize("kind", ["grown", "lazy"])
def test_state_from_before_a_buffer_changed_shape_can_be_loaded(kind):
    trainer = trainer_with(kind)
    saved = copy.deepcopy(trainer.state_dict())
    for _ in range(2):
        trainer.step(REAL)
    trainer.load_state_dict(saved)
    assert_same_state(trainer.state_dict(), saved)


def test_state_of_another_model_is_refused():
    generator, discriminator = make_players(torch.float32)
    generator[2] = nn.GroupNorm(2, 8)
    other = Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu"), generator, discriminator)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(trainer_with("none").state_dict())


def test_module_added_to_the_generator_later_is_averaged():
    trainer = trainer_with("none")
    trainer.step(REAL)
    trainer.generator.append(nn.Conv2d(1, 1, 1))
    trainer.g_optimizer = torch.optim.Adam(trainer.generator.parameters(), 1e-2, fused=True)
    trainer.step(REAL)
    first = trainer.ema_generator[7].weight.clone()
    assert torch.equal(first, trainer.generator[7].weight)
    trainer.step(REAL)
    assert not torch.equal(trainer.ema_generator[7].weight, trainer.generator[7].weight)
    assert trainer.sample(2).isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm`:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm, gan_fast.nn.spectral_norm])
def test_average_of_a_spectrally_normalized_generator_has_norm_one(norm):
    generator, discriminator = make_players(torch.float32)
    for index in (1, 4):
        generator[index] = norm(generator[index])
    config = TrainConfig(latent_dim=LATENT_DIM, device="cpu", g_lr=1e-2, ema_decay=0.9)
    trainer = Trainer(config, generator, discriminator)
    for _ in range(60):
        trainer.step(REAL)
    trainer.sample(2)
    for index in (1, 4):
        weight = trainer.ema_generator[index].weight.detach()
        largest = torch.linalg.matrix_norm(weight.transpose(0, 1).flatten(1), ord=2)
        assert largest == pytest.approx(1, abs=0.05)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm])
def test_generator_that_ran_before_can_be_copied(norm):
    generator, discriminator = make_players(torch.float32)
    generator[1] = norm(generator[1])
    generator.trace = [{"x": generator(torch.randn(2, LATENT_DIM))}]
    trainer = Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu"), generator, discriminator)
    trainer.step(REAL)
    assert trainer.sample(3).isfinite().all()


CHANGES = {
    "fused": lambda g: gan_fast.fuse(g),
    "compiled": lambda g: torch.compile(g, backend="eager"),
    "hooked": lambda g: (g.register_forward_hook(lambda *_: None), g)[1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_generator_is_averaged(change):
    generator, discriminator = make_players(torch.float32)
    trainer = Trainer(
        TrainConfig(latent_dim=LATENT_DIM, device="cpu", ema_decay=0), CHANGES[change](generator), discriminator
    )
    trainer.step(REAL)
    torch.testing.assert_close(trainer.ema_generator.state_dict(), trainer.generator.state_dict())


def lazy():
    return nn.Sequential(nn.LazyLinear(64), nn.Unflatten(1, (1, 8, 8)))


class Uncopyable(nn.Module):
    def __deepcopy__(self, memo):
        raise TypeError("a lock")


@pytest.mark.parametrize(
    ("players", "error", "message"),
    [
        ((lazy(), make_players()[1]), ValueError, r"expected generator with initialized parameters.* 0.weight, 0.bias"),
        ((make_players()[0], lazy()), ValueError, r"expected discriminator with initialized parameters"),
        ((Uncopyable(), make_players()[1]), ValueError, r"copy.deepcopy can copy, got TypeError: a lock"),
        ((len, make_players()[1]), TypeError, r"expected generator type torch.nn.Module, got builtin_function"),
    ],
)
def test_model_that_cannot_be_trained_is_refused(players, error, message):
    with pytest.raises(error, match="^Trainer: .*" + message):
        Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu"), *players)
