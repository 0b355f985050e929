"""SavedValues restores values if a flag is set, and the host reads the flag only if it must."""

import copy

import pytest
import torch
from pairs import pairwise
from train.recorder import NoReadBack

from gan_fast.train.undo import SavedValues

BASE = torch.arange(3.0)
TENSORS = {
    "float": BASE,
    "infinite": torch.tensor([0.0, float("-inf"), float("nan")]),
    "integer": torch.arange(3),
    "boolean": BASE > 1,
    "complex": BASE.cfloat(),
    "float8": BASE.to(torch.float8_e4m3fn),
    "expanded": BASE[:1].expand(3),
    "expanded rows": BASE.expand(2, 3),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.0),
    "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
}


def assert_equal(a, b):
    assert a.shape == b.shape
    torch.testing.assert_close(a.cfloat(), b.cfloat(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(*pairwise(kind=TENSORS, replaced=[True, False], flag=[True, False]))
def test_tensor_is_restored_without_reading_the_flag(kind, replaced, flag):
    tensor = copy.deepcopy(TENSORS[kind])
    before, written = tensor.clone(), tensor
    holder = {"t": tensor}
    saved = SavedValues([holder])
    other = torch.ones_like(before)
    with NoReadBack():
        if replaced:
            holder["t"] = other.clone()
        else:
            for dim, stride in enumerate(written.stride()):
                written = written.narrow(dim, 0, min(1, written.shape[dim])) if stride == 0 else written
            written.copy_(other[tuple(slice(0, n) for n in written.shape)])
        assert saved.restore_if(torch.tensor(flag)) is None
    assert_equal(holder["t"], before if flag else other)
    assert (holder["t"] is tensor) != replaced


def grow(holder):
    holder["t"] = torch.cat([holder["t"], torch.ones(1)])


def retype(holder):
    holder["t"] = holder["t"].double()


def drop(holder):
    del holder["t"]


def clear(holder):
    holder["t"] = None


def add(holder):
    holder["new"] = torch.ones(2)


def count(holder):
    holder["count"] += 1


def grow_and_write(holder):
    holder["t"].mul_(5)
    grow(holder)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("change", [grow, retype, drop, clear, add, count, grow_and_write])
def test_other_changes_are_restored_by_the_host(change, flag):
    holder, other = {"t": torch.arange(3.0), "count": 1, "none": None}, {"t": torch.arange(3.0), "count": 1}
    tensor = holder["t"]
    saved = SavedValues([holder])
    change(holder)
    change(other)
    assert saved.restore_if(torch.tensor(flag)) is not None
    if flag:
        assert holder.keys() == {"t", "count", "none"}
        assert holder["t"] is tensor
        assert_equal(tensor, torch.arange(3.0))
        assert holder["count"] == 1
    else:
        assert holder.keys() - {"none"} == other.keys()
        assert all(str(holder[key]) == str(other[key]) for key in other)


def test_list_entries_are_restored():
    a, b = torch.zeros(2), torch.ones(2)
    held = [a, 3]
    saved = SavedValues([held])
    held[:] = [b, 3, a]
    assert saved.restore_if(torch.tensor(True)) is not None
    assert held[0] is b or held[0] is a
    assert len(held) == 2
    assert not held[0].any()


def test_excluded_storage_is_not_restored():
    weight = torch.zeros(4)
    holder = {"view": weight[:2], "own": torch.zeros(2)}
    saved = SavedValues([holder], {weight.untyped_storage()._cdata})
    weight.add_(1)
    holder["own"].add_(1)
    assert saved.restore_if(torch.tensor(True)) is None
    assert weight.sum() == 4
    assert holder["own"].sum() == 0
