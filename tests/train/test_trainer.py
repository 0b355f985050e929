"""Trainer: the algorithm, its reproducibility, and skipped updates."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train.players import LATENT_DIM, REAL, NaNObjective, assert_same_state, make_images, make_players, make_trainer
from train.recorder import NoReadBack

from gan_fast import models, objectives
from gan_fast.data import DeviceLoader
from gan_fast.train import TrainConfig, Trainer, TrainingDivergedError


def plain_dcgan(generator, discriminator, batches, objective, d_steps, seed):
    """Train as a textbook does, in plain PyTorch; return one row of losses and means per iteration."""
    g_adam = torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.999))
    d_adam = torch.optim.Adam(discriminator.parameters(), 2e-4, (0.5, 0.999))
    rng = torch.Generator().manual_seed(seed)
    bce, rows = F.binary_cross_entropy_with_logits, []

    def latents(x):
        return torch.randn(len(x), LATENT_DIM, generator=rng, dtype=x.dtype)

    for iteration in batches:
        for x in iteration:
            d_adam.zero_grad()
            fake = generator(latents(x))
            real_logits, fake_logits = discriminator(x), discriminator(fake.detach())
            d_loss = bce(real_logits, torch.ones_like(real_logits)) + bce(fake_logits, torch.zeros_like(fake_logits))
            d_loss.backward()
            d_adam.step()
        g_adam.zero_grad()
        logits = discriminator(fake)
        if objective == "non_saturating":
            g_loss = bce(logits, torch.ones_like(logits))
        else:
            g_loss = -bce(logits, torch.zeros_like(logits))
        g_loss.backward()
        g_adam.step()
        values = (d_loss, g_loss, real_logits.sigmoid().mean(), fake_logits.sigmoid().mean())
        rows.append([value.item() for value in values])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("objective", ["non_saturating", "minimax"])
@pytest.mark.parametrize("d_steps", [1, 3])
def test_steps_equal_a_plain_pytorch_loop(objective, d_steps):
    trainer = make_trainer(data=False, dtype=torch.float64, objective=objective, d_steps=d_steps, seed=7)
    generator, discriminator = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
    loader = DeviceLoader(make_images(), 8)
    batches = [[loader.batch(d_steps * t + i).double() for i in range(d_steps)] for t in range(5)]

    want = plain_dcgan(generator, discriminator, batches, objective, d_steps, seed=7)
    rows = [trainer.step(iteration) for iteration in batches]
    have = torch.stack([torch.stack([row[n] for n in ("d_loss", "g_loss", "d_real", "d_fake")]) for row in rows])

    torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-12)
    # The state includes the running statistics of batch norm, which every forward pass updates.
    for have, want in ((trainer.generator, generator), (trainer.discriminator, discriminator)):
        torch.testing.assert_close(have.state_dict(), want.state_dict(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("objective", objectives.NAMES)
def test_every_objective_trains(objective):
    trainer = make_trainer(data=False, dtype=torch.float64, objective=objective)
    answers, inputs = [], []
    trainer.discriminator.register_forward_hook(lambda module, args, output: answers.append(output.detach()))
    trainer.discriminator.register_forward_hook(lambda module, args, output: inputs.append(args[0].detach()))
    before = copy.deepcopy(trainer.generator.state_dict())
    result = trainer.step(REAL.double())
    assert all(value.isfinite() for value in result.values())
    assert 0 <= result["d_accuracy"] <= 1
    # D's loss uses D(x) and D(G(z)); G's loss uses the outputs of the updated D, and D(x) only if it needs it.
    loss = objectives.make_objective(objective)
    torch.testing.assert_close(result["d_loss"], loss.d_loss(answers[0], answers[1])[0])
    assert len(answers) == (4 if loss.g_needs_real else 3)
    real = answers[2] if loss.g_needs_real else None
    torch.testing.assert_close(result["g_loss"], loss.g_loss(answers[-1], real))
    if loss.g_needs_real:
        assert torch.equal(inputs[2], inputs[0])
    assert any(not torch.equal(now, before[name]) for name, now in trainer.generator.state_dict().items())


def test_fused_dcgan_trains_like_the_plain_one():
    config = TrainConfig(latent_dim=LATENT_DIM, batch_size=8, seed=3, device="cpu")
    torch.manual_seed(0)
    fused = models.DCGANGenerator(LATENT_DIM, 1, 16, 4), models.DCGANDiscriminator(1, 16, 4)
    plain = copy.deepcopy(fused[0]), copy.deepcopy(fused[1])
    for model in plain:
        for block in model.blocks:
            if hasattr(block, "bn"):
                bn = nn.BatchNorm2d(block.bn.num_features)
                bn.load_state_dict(block.bn.state_dict())
                act = nn.ReLU() if block.bn.activation == "relu" else nn.LeakyReLU(block.bn.negative_slope)
                block.bn = nn.Sequential(bn, act)
    trainer = Trainer(config, *fused)
    batches = [[torch.rand(8, 1, 16, 16) * 2 - 1] for _ in range(3)]
    want = plain_dcgan(*plain, batches, "non_saturating", 1, seed=3)
    rows = [trainer.step(iteration) for iteration in batches]
    have = torch.tensor([[row[n] for n in ("d_loss", "g_loss", "d_real", "d_fake")] for row in rows])
    torch.testing.assert_close(have, want.float(), rtol=1e-3, atol=1e-4)


def test_single_batch_is_used_for_every_discriminator_step():
    one, many = (make_trainer(data=False, d_steps=3) for _ in range(2))
    one.step(REAL)
    many.step([REAL] * 3)
    assert_same_state(one.state_dict(), many.state_dict())
    with pytest.raises(ValueError, match=r"expected real a sequence of d_steps = 3 batches, got 2"):
        one.step([REAL] * 2)


@pytest.mark.parametrize(
    ("real", "message"),
    [
        (
            make_images()[:8],
            "real dtype floating point, with values in [-1, 1], got torch.uint8; scale uint8 images with",
        ),
        (REAL.long(), "real dtype floating point, with values in [-1, 1], got torch.int64"),
        (REAL > 0, "real dtype floating point, with values in [-1, 1], got torch.bool"),
        (REAL.cfloat(), "real dtype floating point, with values in [-1, 1], got torch.complex64"),
        ([REAL, make_images()[:8]], "real dtype floating point, with values in [-1, 1], got torch.uint8"),
        ([REAL, REAL.numpy()], "real type torch.Tensor, got ndarray"),
        (3, "real type torch.Tensor, got int"),
    ],
)
def test_wrong_batch_type_is_refused_and_changes_nothing(real, message):
    trainer = make_trainer(data=False, d_steps=2)
    before = copy.deepcopy(trainer.state_dict())
    with NoReadBack(), pytest.raises(TypeError, match="^" + re.escape(f"Trainer.step: expected {message}")):
        trainer.step(real)
    assert_same_state(trainer.state_dict(), before)


@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_get_the_memory_format_of_the_discriminator(channels_last):
    generator, discriminator = models.DCGANGenerator(LATENT_DIM, 3, 16, 4), models.DCGANDiscriminator(3, 16, 4)
    if channels_last:
        discriminator.to(memory_format=torch.channels_last)
    trainer = Trainer(TrainConfig(device="cpu", precision="fp32"), generator, discriminator)
    seen = []
    discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    trainer.step(torch.rand(8, 3, 16, 16) * 2 - 1)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    assert seen[0].is_contiguous() != channels_last


def test_generator_step_adds_no_gradient_to_the_discriminator():
    trainer = make_trainer(data=False)
    d = trainer.discriminator
    before = {}

    def remember(*_):
        before.update({n: p.grad.clone() for n, p in d.named_parameters()})

    trainer.d_optimizer.register_step_post_hook(remember)
    trainer.step(REAL)
    assert_same_state({n: p.grad for n, p in d.named_parameters()}, before)
    assert all(p.requires_grad for p in d.parameters())
    assert all(p.grad is not None for p in trainer.generator.parameters())


def test_discriminator_is_unfrozen_after_an_exception_in_the_generator_step():
    trainer = make_trainer(data=False)
    frozen = trainer.discriminator[0].weight.requires_grad_(False)
    kept = [p.requires_grad for p in trainer.discriminator.parameters()]

    class Failing:
        g_needs_real = False

        def d_loss(self, real, fake):
            return real.mean() - fake.mean(), torch.zeros(3)

        def g_loss(self, fake, real=None):
            assert not any(p.requires_grad for p in trainer.discriminator.parameters())
            raise RuntimeError("out of memory")

    trainer.objective = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.step(REAL)
    assert [p.requires_grad for p in trainer.discriminator.parameters()] == kept
    assert not frozen.requires_grad


def test_frozen_parameters_stay_frozen_and_unchanged():
    generator, discriminator = make_players(torch.float32)
    generator[1].weight.requires_grad_(False)
    discriminator[0].weight.requires_grad_(False)
    before = generator[1].weight.clone(), discriminator[0].weight.clone()
    trainer = Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu"), generator, discriminator)
    trainer.step(REAL)
    assert torch.equal(generator[1].weight, before[0])
    assert torch.equal(discriminator[0].weight, before[1])
    assert not generator[1].weight.requires_grad


def test_host_does_not_wait_in_a_step():
    trainer = make_trainer(data=False, d_steps=2)
    for _ in range(2):
        with NoReadBack():
            result = trainer.step(REAL)
    assert all(value.shape == () and not value.requires_grad for value in result.values())
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReadBack():
        result["d_loss"].item()


def test_equal_seeds_give_equal_weights():
    states = []
    for seed in (0, 0, 1):
        trainer = make_trainer(steps=6, seed=seed)
        trainer.fit()
        states.append(trainer.state_dict())
    assert_same_state(states[0], states[1])
    with pytest.raises(AssertionError):
        assert_same_state(states[0]["generator"], states[2]["generator"])


@pytest.mark.parametrize("d_steps", [1, 2])
def test_resumed_training_equals_an_uninterrupted_one(d_steps):
    # 40 images in batches of 8: an epoch ends before and after the break. Dropout draws from the global random state.
    def trainer(steps):
        generator, discriminator = make_players(torch.float32)
        discriminator.insert(2, nn.Dropout(0.3))
        config = TrainConfig(latent_dim=LATENT_DIM, batch_size=8, steps=steps, d_steps=d_steps, device="cpu")
        torch.manual_seed(5)
        return Trainer(config, generator, discriminator, make_images())

    whole, half = trainer(14), trainer(7)
    whole.fit()
    whole = whole.state_dict()
    half = trainer(7)
    half.fit()
    saved = copy.deepcopy(half.state_dict())
    torch.rand(3)
    second = trainer(14)
    second.load_state_dict(saved)
    second.fit()
    assert second.steps_done == 14
    assert_same_state(second.state_dict(), whole)


def test_resumed_training_uses_the_learning_rate_of_the_new_config():
    first = make_trainer(data=False)
    first.step(REAL)
    second = make_trainer(data=False, d_lr=1e-5)
    second.load_state_dict(first.state_dict())
    assert second.d_optimizer.param_groups[0]["lr"] == 1e-5


def test_state_of_a_model_in_another_memory_format_can_be_loaded():
    # Fused Adam reads moments in storage order, which must be changed to that of the parameters.
    plain, other = make_trainer(data=False, dtype=torch.float64), make_trainer(data=False, dtype=torch.float64)
    for model in (other.generator, other.discriminator):
        model.to(memory_format=torch.channels_last)
    for _ in range(2):
        plain.step(REAL)
    other.load_state_dict(plain.state_dict())
    for current in (plain, other):
        current.step(REAL)
    torch.testing.assert_close(other.discriminator.state_dict(), plain.discriminator.state_dict())
    torch.testing.assert_close(other.generator.state_dict(), plain.generator.state_dict())


def test_average_follows_its_formula():
    trainer = make_trainer(data=False, dtype=torch.float64, ema_decay=0.2)
    want = copy.deepcopy(trainer.generator.state_dict())
    for t in range(1, 5):
        trainer.step(REAL)
        decay = min(0.2, t / (t + 9))
        for name, value in trainer.generator.state_dict().items():
            want[name] = decay * want[name] + (1 - decay) * value if value.is_floating_point() else value
    torch.testing.assert_close(trainer.ema_generator.state_dict(), want)
    assert not trainer.ema_generator.training


def test_samples_depend_on_the_seed_and_do_not_change_training():
    trainer, undisturbed = make_trainer(data=False), make_trainer(data=False)
    trainer.generator[2].eval()
    undisturbed.generator[2].eval()
    for current in (trainer, undisturbed):
        current.step(REAL)
    samples = trainer.sample(300, seed=4)
    assert samples.shape == (300, 1, 8, 8)
    assert samples.abs().max() <= 1
    assert torch.equal(samples, trainer.sample(300, seed=4))
    assert not torch.equal(samples, trainer.sample(300, seed=5))
    assert not torch.equal(samples, trainer.sample(300, seed=4, ema=False))
    z = torch.randn(3, LATENT_DIM)
    assert torch.equal(trainer.sample(z=z), trainer.sample(z=z))
    assert trainer.generator.training
    assert not trainer.generator[2].training
    for current in (trainer, undisturbed):
        current.step(REAL)
    assert_same_state(trainer.state_dict(), undisturbed.state_dict())
    with pytest.raises(ValueError, match="expected n at least 1, got 0"):
        trainer.sample(0)


def test_non_finite_step_changes_only_the_counters():
    trainer = make_trainer(data=False)
    trainer.step(REAL)
    before = copy.deepcopy(trainer.state_dict())
    bad = REAL.clone()
    bad[0, 0, 0, 0] = float("inf")
    trainer.objective = NaNObjective(trainer.objective)
    result = trainer.step(bad)
    after = trainer.state_dict()
    assert result["skipped"] == 1
    assert (after["skipped_steps"], after["skipped_in_a_row"]) == (1, 1)
    for name in ("generator", "discriminator", "g_optimizer", "d_optimizer"):
        assert_same_state(after[name], before[name])
    assert trainer.is_finite()
    trainer.objective = trainer.objective.objective
    assert trainer.step(REAL)["skipped"] == 0
    assert (trainer.skipped_steps, trainer.skipped_in_a_row) == (1, 0)


def test_fit_stops_after_too_many_skipped_steps():
    trainer = make_trainer(steps=100, log_every=4, max_skipped_steps=6)
    trainer.objective = NaNObjective(trainer.objective)
    with pytest.raises(TrainingDivergedError, match=r"got NaN or infinity in the last 8 steps \(step 8\)"):
        trainer.fit()
    assert trainer.is_finite()


def test_is_finite_checks_moments():
    trainer = make_trainer(data=False)
    trainer.step(REAL)
    assert trainer.is_finite()
    next(iter(trainer.g_optimizer.state.values()))["exp_avg_sq"][0] = float("inf")
    assert not trainer.is_finite()


def test_fit_reports_means_and_stops():
    trainer = make_trainer(steps=10, log_every=4)
    steps, logged = [], []

    def on_step(step):
        steps.append(step)
        if step == 9:
            trainer.stop()

    rows = trainer.fit(logged.append, on_step)
    assert steps == list(range(1, 10))
    assert rows == logged
    assert [row["step"] for row in rows] == [4, 8]
    assert set(rows[0]) == {
        "step", "d_loss", "g_loss", "d_real", "d_fake", "d_accuracy", "penalty", "images_per_s", "time_s",
        "skipped_steps",
    }  # fmt: skip
    same = make_trainer(steps=10)
    loader = DeviceLoader(make_images(), 8)
    losses = [float(same.step(loader.batch(t))["d_loss"]) for t in range(4)]
    assert rows[0]["d_loss"] == pytest.approx(sum(losses) / 4)
    assert trainer.fit()[-1]["step"] == 10


def test_bf16_keeps_float32_weights_and_is_close_to_fp32():
    full, half = make_trainer(data=False, precision="fp32"), make_trainer(data=False, precision="bf16")
    dtypes = []
    half.generator[1].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    a, b = full.step(REAL), half.step(REAL)
    assert set(dtypes) == {torch.bfloat16}
    assert {p.dtype for p in half.generator.parameters()} == {torch.float32}
    assert a["d_loss"] != b["d_loss"]
    torch.testing.assert_close(a["d_loss"], b["d_loss"], rtol=0.02, atol=0.02)


def test_auto_precision_is_fp32_on_a_cpu():
    full, auto = make_trainer(data=False, precision="fp32"), make_trainer(data=False)
    assert_same_state(full.step(REAL), auto.step(REAL))


@pytest.mark.parametrize(
    ("options", "data", "error", "message"),
    [
        ({"latent_dim": None}, None, ValueError, "expected an int in config.latent_dim or generator.latent_dim"),
        ({"device": "cuda:77"}, None, ValueError, "^Trainer: expected device one of auto, cpu.* got 'cuda:77'"),
        ({"device": "abacus"}, None, ValueError, "^Trainer: expected device one of auto, cpu.* got 'abacus'"),
        ({}, "digits", TypeError, "expected data type torch.Tensor, ImageData or an object with a method batch"),
        ({"batch_size": 41}, make_images(), ValueError, "^Trainer: expected at least batch_size = 41 images, got 40"),
        (
            {},
            make_images().float(),
            TypeError,
            "^Trainer: expected data dtype torch.uint8, with values from 0 to 255, got torch.float32; convert images",
        ),
        ({}, make_images()[0], ValueError, r"^Trainer: expected data shape \(N, C, H, W\), got \(1, 8, 8\)$"),
    ],
)
def test_bad_argument_is_refused(options, data, error, message):
    config = TrainConfig(**{"latent_dim": LATENT_DIM, **options})
    with pytest.raises(error, match=message):
        Trainer(config, *make_players(), data)


@pytest.mark.parametrize(("is_built", "reason"), [(False, "has no CUDA"), (True, "sees no GPU")])
def test_missing_gpu_is_refused_with_the_reason(is_built, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: is_built)
    want = f"Trainer: expected device one of auto, cpu, got 'cuda:9': this PyTorch ({torch.__version__}) {reason}"
    with pytest.raises(ValueError, match=f"^{re.escape(want)}$"):
        make_trainer(device="cuda:9")


@pytest.mark.parametrize("generator", [nn.ConvTranspose2d(LATENT_DIM, 1, 8), nn.Linear(LATENT_DIM + 1, 64)])
def test_generator_that_cannot_take_latents_is_refused_with_the_remedy(generator):
    trainer = Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu"), generator, make_players(torch.float32)[1])
    want = r"^Trainer: the generator cannot take latents \(N, 5\): .*; put nn.Unflatten\(1, \(5, 1, 1\)\) first if it"
    with pytest.raises(ValueError, match=want) as raised:
        trainer.step(REAL)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_generator_that_runs_out_of_memory_is_not_blamed():
    generator, discriminator = make_players(torch.float32)
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    generator.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    trainer = Trainer(TrainConfig(latent_dim=LATENT_DIM, device="cpu"), generator, discriminator)
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator"):
        trainer.step(REAL)


class Pair(nn.Module):
    """A model that returns the output of another one twice."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x), self.model(x)


def test_generated_images_must_have_the_shape_of_the_data():
    generator, discriminator = make_players(torch.float32)
    config = TrainConfig(latent_dim=LATENT_DIM, batch_size=8, device="cpu")
    larger = nn.Sequential(generator, nn.Upsample(scale_factor=2))
    want = "Trainer: expected generator to return images (N, 1, 8, 8) like the data, got (N, 1, 16, 16)"
    with pytest.raises(ValueError, match=f"^{re.escape(want)}$"):
        Trainer(config, larger, discriminator, make_images()).fit()
    with pytest.raises(TypeError, match=r"^Trainer: expected the generator to return a tensor of images, got tuple$"):
        Trainer(config, Pair(generator), discriminator).step(REAL)


@pytest.mark.parametrize("options", [{}, {"penalty": "r1"}, {"penalty": "gradient_penalty"}, {"update": "one_stage"}])
def test_discriminator_must_return_a_tensor(options):
    discriminator = Pair(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)))
    config = TrainConfig(latent_dim=LATENT_DIM, device="cpu", **options)
    trainer = Trainer(config, make_players(torch.float32)[0], discriminator)
    want = r"^Trainer: expected the discriminator to return a tensor of logits, got tuple$"
    with pytest.raises(TypeError, match=want):
        trainer.step(REAL)


@pytest.mark.parametrize(
    ("tail", "objective", "warns"),
    [
        ([nn.Sigmoid()], "non_saturating", True),
        ([nn.Sigmoid(), nn.Flatten(0)], "hinge", True),
        ([nn.Sequential(nn.Sigmoid())], "wasserstein", True),
        ([nn.Sigmoid()], "least_squares", False),
        ([nn.Sigmoid(), nn.Linear(1, 1)], "non_saturating", False),
        ([], "non_saturating", False),
    ],
)
def test_final_sigmoid_is_reported_once(tail, objective, warns, caplog):
    generator, _ = make_players(torch.float32)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), *tail)
    config = TrainConfig(objective=objective, latent_dim=LATENT_DIM, batch_size=8, steps=2, device="cpu")
    Trainer(config, generator, discriminator, make_images()).fit()
    messages = [record.getMessage() for record in caplog.records if record.name == "gan_fast"]
    assert ["expects logits: remove the final Sigmoid" in message for message in messages] == [True] * warns


def test_configuration_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"^Trainer: expected config type TrainConfig, got dict$"):
        Trainer({}, *make_players())


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_model_without_trainable_parameters_is_refused(name):
    players = dict(zip(("generator", "discriminator"), make_players(), strict=True))
    players[name].requires_grad_(False)
    with pytest.raises(ValueError, match=f"^Trainer: expected {name} with parameters that require gradients, got none"):
        Trainer(TrainConfig(latent_dim=LATENT_DIM), **players)


def test_fit_needs_data():
    with pytest.raises(ValueError, match=r"Trainer.fit: expected a trainer made with data, got data None"):
        make_trainer(data=False).fit()


def test_latent_dim_must_equal_that_of_the_generator():
    generator = models.DCGANGenerator(7, 1, 16, 2)
    discriminator = models.DCGANDiscriminator(1, 16, 2)
    assert Trainer(TrainConfig(device="cpu"), generator, discriminator).latent_dim == 7
    with pytest.raises(ValueError, match=r"expected config.latent_dim 7, as generator.latent_dim is, got 9"):
        Trainer(TrainConfig(latent_dim=9, device="cpu"), generator, discriminator)
