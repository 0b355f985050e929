"""Configurations are checked when they are made."""

import dataclasses
import re
from pathlib import Path

import pytest

from gan_fast import objectives
from gan_fast.train import TrainConfig
from gan_fast.train.run import RunConfig


def test_defaults_that_stay():
    config = TrainConfig()
    assert (config.objective, config.d_steps, config.batch_size) == ("non_saturating", 1, 64)
    assert (config.precision, config.seed) == ("auto", 0)
    assert (config.d_lr, config.g_lr, config.d_betas, config.g_betas) == (2e-4, 2e-4, (0.5, 0.999), (0.5, 0.999))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_a_pair_from_json_equals_the_tuple():
    assert TrainConfig(d_betas=[0.5, 0.999]) == TrainConfig()
    assert all(isinstance(beta, float) for beta in TrainConfig(d_betas=(0, 0.9)).d_betas)


OBJECTIVES = f"one of {', '.join(objectives.NAMES)}"
PENALTIES = f"none, or {', '.join(objectives.PENALTIES)}, or several of these joined by +"
REGULARIZERS = f"any of {', '.join(objectives.REGULARIZERS)}, each once"


@pytest.mark.parametrize(
    ("field", "value", "error", "want"),
    [
        ("objective", "wgan", ValueError, OBJECTIVES + ", got 'wgan'"),
        ("penalty", "gp", ValueError, PENALTIES + ", got 'gp'"),
        ("penalty", "r1+r1", ValueError, PENALTIES + ", got 'r1+r1'"),
        ("penalty", "r1+none", ValueError, PENALTIES + ", got 'r1+none'"),
        ("penalty", "", ValueError, PENALTIES + ", got ''"),
        ("penalty", None, TypeError, "type str, got NoneType"),
        ("penalty_weight", -1.0, ValueError, "in [0, inf), got -1.0"),
        ("penalty_center", float("nan"), ValueError, "in [0, inf), got nan"),
        ("penalty_every", 0, ValueError, "at least 1, got 0"),
        ("regularizers", ("dropout",), ValueError, REGULARIZERS + ", got ('dropout',)"),
        ("regularizers", ("weight_clipping",) * 2, ValueError, REGULARIZERS),
        ("regularizers", "weight_clipping", TypeError, "type tuple of str, got str"),
        ("clip_value", 0.0, ValueError, "in (0, inf), got 0.0"),
        ("noise_std", "much", TypeError, "type float, got str"),
        ("noise_steps", 0, ValueError, "at least 1, got 0"),
        ("feature_weight", -1, ValueError, "in [0, inf), got -1"),
        ("update", "simultaneous", ValueError, "one of alternating, one_stage, got 'simultaneous'"),
        ("precision", "fp16", ValueError, "one of fp32, bf16, auto, got 'fp16'"),
        ("cuda_graph", True, ValueError, "one of auto, on, off, got True"),
        ("d_steps", 0, ValueError, "at least 1, got 0"),
        ("d_steps", 1.0, TypeError, "type int, got float"),
        ("batch_size", 1, ValueError, "at least 2, got 1"),
        ("batch_size", True, TypeError, "type int, got bool"),
        ("steps", -1, ValueError, "at least 1, got -1"),
        ("seed", -1, ValueError, "at least 0, got -1"),
        ("seed", 2**63, ValueError, "below 2**63, got 9223372036854775808"),
        ("seed", "0", TypeError, "type int, got str"),
        ("latent_dim", 0, ValueError, "at least 1, got 0"),
        ("d_lr", 0.0, ValueError, "in (0, inf), got 0.0"),
        ("g_lr", float("nan"), ValueError, "in (0, inf), got nan"),
        ("g_lr", float("inf"), ValueError, "in (0, inf), got inf"),
        ("g_lr", "fast", TypeError, "type float, got str"),
        ("d_betas", (0.5, 1.0), ValueError, "in [0, 1), got (0.5, 1.0)"),
        ("g_betas", (0.5,), TypeError, "type pair of float, got tuple"),
        ("g_betas", 0.5, TypeError, "type pair of float, got float"),
        ("ema_decay", 1.0, ValueError, "in [0, 1), got 1.0"),
        ("real_label", 1.1, ValueError, "in [0, 1], got 1.1"),
        ("fake_label", -0.1, ValueError, "in [0, 1], got -0.1"),
        ("log_every", 0, ValueError, "at least 1, got 0"),
        ("max_skipped_steps", 0, ValueError, "at least 1, got 0"),
        ("device", 0, TypeError, "type str, got int"),
    ],
)
def test_bad_values_are_named(field, value, error, want):
    with pytest.raises(error, match=f"^{re.escape(f'TrainConfig: expected {field} {want}')}"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"update": "one_stage", "d_steps": 2}, "expected d_steps 1 for update one_stage, got 2"),
        (
            {"update": "one_stage", "regularizers": ("feature_matching",)},
            "expected regularizers without feature_matching",
        ),
    ],
)
def test_what_does_not_go_together_is_named(options, want):
    with pytest.raises(ValueError, match=f"^TrainConfig: {want}"):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("field", "value", "error", "want"),
    [
        ("width", 0, ValueError, "at least 1, got 0"),
        ("sample_every", 0, ValueError, "at least 1, got 0"),
        ("checkpoint_every", 2.5, TypeError, "type int, got float"),
        ("d_norm", "layer", ValueError, "one of batch, none, got 'layer'"),
        ("bad_files", "ignore", ValueError, "one of raise, skip, got 'ignore'"),
    ],
)
def test_bad_run_values_are_named(field, value, error, want):
    with pytest.raises(error, match=f"^{re.escape(f'RunConfig: expected {field} {want}')}$"):
        RunConfig("digits", Path("x"), **{field: value})
