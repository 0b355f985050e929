"""Configurations check their fields when they are created."""

import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gan_fast import objectives
from gan_fast.train import TrainConfig
from gan_fast.train.config import ConfigError
from gan_fast.train.run import RunConfig


def test_defaults_are_dcgans_and_fields_are_frozen():
    config = TrainConfig()
    assert (config.objective, config.d_steps, config.batch_size) == ("non_saturating", 1, 64)
    assert (config.precision, config.seed) == ("auto", 0)
    assert (config.d_lr, config.g_lr, config.d_betas, config.g_betas) == (2e-4, 2e-4, (0.5, 0.999), (0.5, 0.999))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_lists_from_json_equal_tuples():
    assert TrainConfig(d_betas=[0.5, 0.999], penalty=[], regularizers=[]) == TrainConfig()
    assert all(isinstance(beta, float) for beta in TrainConfig(d_betas=(0, 0.9)).d_betas)


@pytest.mark.parametrize(
    ("given", "penalty"),
    [
        ("none", ()),
        ("r1", ("r1",)),
        ((), ()),
        (("none",), ()),
        (["r1", "r2"], ("r1", "r2")),
        (("dragan",), ("dragan",)),
    ],
)
def test_penalty_accepts_a_name_or_a_tuple_of_names(given, penalty):
    assert TrainConfig(penalty=given).penalty == penalty


def test_regularizers_accept_a_name():
    assert TrainConfig(regularizers="spectral_norm") == TrainConfig(regularizers=("spectral_norm",))


OBJECTIVES = f"one of {', '.join(objectives.NAMES)}"
PENALTIES = f"one of none, {', '.join(objectives.PENALTIES)}"
REGULARIZERS = f"one of {', '.join(objectives.REGULARIZERS)}"
NOT_NEGATIVE = "a number of at least 0"
DECAY = "a number of at least 0 and below 1"
PROBABILITY = "a number from 0 to 1"


@pytest.mark.parametrize(
    ("field", "value", "error", "want"),
    [
        ("objective", "wgan", ConfigError, OBJECTIVES + ", got 'wgan'"),
        ("penalty", "gp", ConfigError, PENALTIES + ", got 'gp'"),
        ("penalty", "r1+r2", ConfigError, "a tuple of names such as ('r1', 'r2'), got 'r1+r2'"),
        ("penalty", ("r1", "r1"), ConfigError, "to have each name once, got ('r1', 'r1')"),
        (
            "penalty",
            ("r1", "none"),
            ConfigError,
            "none or names of penalties, got r1 none; none cannot be combined with r1",
        ),
        ("penalty", "", ConfigError, PENALTIES + ", got ''"),
        ("penalty", None, TypeError, "type tuple of names, got NoneType"),
        ("penalty_weight", -1.0, ConfigError, NOT_NEGATIVE + ", got -1.0"),
        ("penalty_center", float("nan"), ConfigError, NOT_NEGATIVE + ", got nan"),
        ("penalty_every", 0, ConfigError, "at least 1, got 0"),
        ("regularizers", ("dropout",), ConfigError, REGULARIZERS + ", got 'dropout'"),
        ("regularizers", ([],), ConfigError, REGULARIZERS + ", got []"),
        ("regularizers", ("weight_clipping",) * 2, ConfigError, "to have each name once"),
        ("regularizers", "dropout", ConfigError, REGULARIZERS + ", got 'dropout'"),
        ("regularizers", None, TypeError, "type tuple of names, got NoneType"),
        ("clip_value", 0.0, ConfigError, "a positive number, got 0.0"),
        ("noise_std", "much", TypeError, "type float, got str"),
        ("noise_steps", 0, ConfigError, "at least 1, got 0"),
        ("feature_weight", -1, ConfigError, NOT_NEGATIVE + ", got -1"),
        ("update", "simultaneous", ConfigError, "one of alternating, one_stage, got 'simultaneous'"),
        ("precision", "fp16", ConfigError, "one of fp32, bf16, auto, got 'fp16'"),
        ("cuda_graph", True, ConfigError, "one of auto, on, off, got True"),
        ("d_steps", 0, ConfigError, "at least 1, got 0"),
        ("d_steps", 1.0, TypeError, "type int, got float"),
        ("batch_size", 1, ConfigError, "at least 2, got 1"),
        ("batch_size", True, TypeError, "type int, got bool"),
        ("steps", -1, ConfigError, "at least 1, got -1"),
        ("seed", -1, ConfigError, "at least 0, got -1"),
        ("seed", 2**63, ConfigError, "below 2**63, got 9223372036854775808"),
        ("seed", "0", TypeError, "type int, got str"),
        ("latent_dim", 0, ConfigError, "at least 1, got 0"),
        ("d_lr", 0.0, ConfigError, "a positive number, got 0.0"),
        ("g_lr", float("nan"), ConfigError, "a positive number, got nan"),
        ("g_lr", float("inf"), ConfigError, "a positive number, got inf"),
        ("g_lr", "fast", TypeError, "type float, got str"),
        ("d_betas", (0.5, 1.0), ConfigError, DECAY + ", got 1.0"),
        ("g_betas", (0.5,), TypeError, "to be 2 numbers, got 1"),
        ("g_betas", 0.5, TypeError, "type tuple of numbers, got float"),
        ("ema_decay", 1.0, ConfigError, DECAY + ", got 1.0"),
        ("real_label", 1.1, ConfigError, PROBABILITY + ", got 1.1"),
        ("fake_label", -0.1, ConfigError, PROBABILITY + ", got -0.1"),
        ("log_every", 0, ConfigError, "at least 1, got 0"),
        ("max_skipped_steps", 0, ConfigError, "at least 1, got 0"),
        ("device", 0, TypeError, "type str, got int"),
        ("penalty_weight", 2**64, ConfigError, "below 2**63, got 18446744073709551616"),
    ],
)
def test_bad_value_is_an_error_that_names_the_field(field, value, error, want):
    with pytest.raises(error, match=f"^{re.escape(f'TrainConfig: expected {field} {want}')}") as raised:
        TrainConfig(**{field: value})
    if error is ConfigError:
        assert raised.value.field == field
        assert raised.value.problem.startswith(f"expected {want}")


def test_config_error_is_a_value_error_that_can_be_pickled():
    error = ConfigError("TrainConfig", "d_lr", "a positive number", 0.0)
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == "TrainConfig: expected d_lr a positive number, got 0.0"


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"update": "one_stage", "d_steps": 2}, "expected d_steps 1 when update is one_stage, got 2"),
        (
            {"update": "one_stage", "regularizers": ("feature_matching",)},
            "expected regularizers names other than feature_matching when update is one_stage",
        ),
        ({"objective": "relativistic", "fake_label": 0.1}, "expected fake_label 0 for"),
    ],
)
def test_conflicting_values_are_an_error(options, want):
    with pytest.raises(ConfigError, match=f"^TrainConfig: {want}"):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("field", "value", "error", "want"),
    [
        ("width", 0, ConfigError, "at least 1, got 0"),
        ("image_size", 17, ConfigError, "one of 16, 32, 64, 128, got 17"),
        ("channels", 2, ConfigError, "one of 1, 3, got 2"),
        ("channels", True, ConfigError, "one of 1, 3, got True"),
        ("sample_every", 0, ConfigError, "at least 1, got 0"),
        ("checkpoint_every", 2.5, TypeError, "type int, got float"),
        ("d_norm", "layer", ConfigError, "one of batch, none, got 'layer'"),
        ("bad_files", "ignore", ConfigError, "one of raise, skip, got 'ignore'"),
        ("tensorboard", "yes", TypeError, "type bool, got str"),
        ("train", {}, TypeError, "type TrainConfig, got dict"),
        ("train", None, TypeError, "type TrainConfig, got NoneType"),
    ],
)
def test_bad_run_value_is_an_error_that_names_the_field(field, value, error, want):
    with pytest.raises(error, match=f"^{re.escape(f'RunConfig: expected {field} {want}')}$"):
        RunConfig("digits", Path("x"), **{field: value})


@pytest.mark.parametrize(("recorded", "penalty"), [("none", ()), ("r1", ("r1",)), ("r1+r2", ("r1", "r2"))])
def test_configuration_of_an_older_run_is_read(recorded, penalty):
    config = RunConfig("digits", Path("x"))
    assert RunConfig.from_flat(config.flat() | {"penalty": recorded}, Path("x")).train.penalty == penalty
    assert RunConfig.from_flat(config.flat(), Path("x")) == config


def test_options_without_effect_are_named():
    train = TrainConfig(noise_std=0.5, penalty=("r1",), penalty_center=0, penalty_weight=1, feature_weight=2)
    assert RunConfig("digits", Path("x"), train, max_skipped_files=3).options_without_effect() == [
        "--noise-std (needs --regularizers instance_noise)",
        "--feature-weight (needs --regularizers feature_matching)",
        "--penalty-center (needs --penalty gradient_penalty or dragan)",
        "--max-skipped-files (needs --bad-files skip)",
    ]
    assert RunConfig("digits", Path("x")).options_without_effect() == []


@pytest.mark.parametrize("config", [TrainConfig, RunConfig])
def test_help_describes_every_field_and_its_type(config):
    text = inspect.getdoc(config)
    for f in dataclasses.fields(config):
        assert len(re.findall(rf"^    {f.name} \(.+", text, re.MULTILINE)) == 1
    assert not re.search(r"Count\b|Positive\b|Decay\b(?! per step)", f"{text} {inspect.signature(config)}")


def test_help_describes_types_in_plain_words():
    text = " ".join(TrainConfig.__doc__.split())
    assert "penalty_weight (float, at least 0): Weight of each penalty." in text
    assert "noise_steps (int, at least 1, or None): instance_noise: steps" in text
    assert "d_betas (tuple of length 2, each float, at least 0 and below 1): Adam's decay rates" in text
    assert "cuda_graph (one of 'auto', 'on', 'off'): Run a whole iteration" in text


def test_exceptions_are_public():
    code = (
        "import gan_fast; print([gan_fast.train.CheckpointError, gan_fast.train.ConfigError, gan_fast.train.RunError, "
        "gan_fast.train.TrainingDivergedError, gan_fast.data.DataError, gan_fast.ops.ArgumentError, "
        "gan_fast.ops.DtypeError, gan_fast.objectives.make_objective, gan_fast.export.__all__] and 'public')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "public\n", done.stderr
