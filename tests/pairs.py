"""Fewer test cases than the product of all options: every pair of values occurs, or every triple."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch


def pairwise(strength: int = 2, **options: Iterable[Any]) -> tuple[str, list[Any]]:
    """Return the arguments of ``pytest.mark.parametrize`` for cases in which every pair of values occurs.

        @pytest.mark.parametrize(*pairwise(dtype=DTYPES, layout=LAYOUTS, training=(True, False)))

    A greedy search finds few cases. It is deterministic, so that the names of the tests are stable.

    Args:
        strength: how many options are combined: 2 for pairs of values, 3 for triples.
        options: the values of each argument of the test.
    """
    values = {name: list(given) for name, given in options.items()}
    # The combinations that no case has yet, in a fixed order; and the same, indexed by each value that they contain.
    missing: dict[tuple[tuple[str, int], ...], None] = {}
    by_value: dict[tuple[str, int], dict[tuple[tuple[str, int], ...], None]] = {}
    for names in itertools.combinations(values, min(strength, len(values))):
        for indices in itertools.product(*(range(len(values[name])) for name in names)):
            group = tuple(zip(names, indices))
            missing[group] = None
            for item in group:
                by_value.setdefault(item, {})[group] = None

    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for name in values:
            if name in case:
                continue

            def gain(index: int, name: str = name, case: dict[str, int] = case) -> float:
                # A combination that the case now has counts 1; one that it may get with later values counts 0.01.
                met = {**case, name: index}
                groups = (g for g in by_value[name, index] if all(met.get(n, i) == i for n, i in g))
                return sum(1.0 if all(n in met for n, _ in g) else 0.01 for g in groups)

            # Where gains are equal, the values take turns.
            count = len(values[name])
            case[name] = max(((len(cases) + i) % count for i in range(count)), key=gain)
        for names in itertools.combinations(values, min(strength, len(values))):
            group = tuple((name, case[name]) for name in names)
            if group in missing:
                del missing[group]
                for item in group:
                    del by_value[item][group]
        cases.append([case[name] for name in values])

    rows = [[given[i] for given, i in zip(values.values(), case)] for case in sorted(cases)]
    return ",".join(values), [pytest.param(*row, id="-".join(map(_id, row))) for row in rows]


def in_dtypes(samples: Sequence[Any], dtypes: Sequence[torch.dtype]) -> tuple[str, list[Any]]:
    """Return the arguments of ``pytest.mark.parametrize`` for samples in dtypes: each sample in one half type only.

    bfloat16 and float16 share a kernel's code but for the conversions, so one of them for each sample is enough. Random
    choice (seeded) keeps the half type from following a pattern in the list of samples.
    """
    halves = [dtype for dtype in dtypes if dtype.itemsize == 2]
    others = [dtype for dtype in dtypes if dtype.itemsize != 2]
    choose = random.Random(0).choice
    cases = [(sample, dtype) for sample in samples for dtype in (*others, *([choose(halves)] if halves else []))]
    return "sample,dtype", [pytest.param(*case, id="-".join(map(str, case))) for case in cases]


def _id(value: Any) -> str:
    return str(getattr(value, "__name__", value))
