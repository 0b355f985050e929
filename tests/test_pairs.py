from __future__ import annotations

import itertools

import pytest
import torch
from pairs import in_dtypes, pairwise

OPTIONS = {"a": "uvwxyz", "b": (1, 2, 3), "c": (True, False), "d": "pqr", "e": (None, 0.5)}


@pytest.mark.parametrize(("strength", "most"), [(2, 20), (3, 62)])
def test_every_combination_of_values_occurs(strength: int, most: int) -> None:
    names, cases = pairwise(strength, **OPTIONS)
    assert names == "a,b,c,d,e"
    assert len({case.id for case in cases}) == len(cases) <= most
    for chosen in itertools.combinations(range(len(OPTIONS)), strength):
        wanted = set(itertools.product(*(list(OPTIONS.values())[i] for i in chosen)))
        assert {tuple(case.values[i] for i in chosen) for case in cases} == wanted


def test_every_value_of_a_single_option_is_a_case() -> None:
    assert [case.values for case in pairwise(a=(1, 2))[1]] == [(1,), (2,)]


def test_each_sample_has_one_half_type() -> None:
    _, cases = in_dtypes(range(20), (torch.float32, torch.bfloat16, torch.float16))
    assert [case.values[0] for case in cases] == [sample for sample in range(20) for _ in range(2)]
    assert [case.values[1] for case in cases[::2]] == [torch.float32] * 20
    assert {case.values[1] for case in cases[1::2]} == {torch.bfloat16, torch.float16}
