"""Values are put back where a flag says so, and the host reads it only where it must."""

import copy

import pytest
import torch
from pairs import pairwise
from torch.utils._python_dispatch import TorchDispatchMode
from train.recorder import SYNCHRONISING

from gan_fast.train.undo import Kept


class NoReadBack(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in SYNCHRONISING, func
        return func(*args, **(kwargs or {}))


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


def same(a, b):
    assert a.shape == b.shape
    torch.testing.assert_close(a.cfloat(), b.cfloat(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(*pairwise(kind=TENSORS, replaced=[True, False], flag=[True, False]))
def test_a_tensor_is_put_back_on_the_device(kind, replaced, flag):
    tensor = copy.deepcopy(TENSORS[kind])
    before, store = tensor.clone(), tensor
    holder = {"t": store}
    kept = Kept([holder])
    other = torch.ones_like(before)
    with NoReadBack():
        if replaced:
            holder["t"] = other.clone()
        else:
            for dim, stride in enumerate(store.stride()):
                store = store.narrow(dim, 0, min(1, store.shape[dim])) if stride == 0 else store
            store.copy_(other[tuple(slice(0, n) for n in store.shape)])
        assert kept.undo(torch.tensor(flag)) is None
    same(holder["t"], before if flag else other)
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
def test_what_changes_otherwise_is_put_back_by_the_host(change, flag):
    holder, other = {"t": torch.arange(3.0), "count": 1, "none": None}, {"t": torch.arange(3.0), "count": 1}
    tensor = holder["t"]
    kept = Kept([holder])
    change(holder)
    change(other)
    assert kept.undo(torch.tensor(flag)) is not None
    if flag:
        assert holder.keys() == {"t", "count", "none"}
        assert holder["t"] is tensor
        same(tensor, torch.arange(3.0))
        assert holder["count"] == 1
    else:
        assert holder.keys() - {"none"} == other.keys()
        assert all(str(holder[key]) == str(other[key]) for key in other)


def test_lists_are_put_back():
    a, b = torch.zeros(2), torch.ones(2)
    held = [a, 3]
    kept = Kept([held])
    held[:] = [b, 3, a]
    assert kept.undo(torch.tensor(True)) is not None
    assert held[0] is b or held[0] is a
    assert len(held) == 2
    assert not held[0].any()


def test_shared_memory_is_left_alone():
    weight = torch.zeros(4)
    holder = {"view": weight[:2], "own": torch.zeros(2)}
    kept = Kept([holder], {weight.untyped_storage()._cdata})
    weight.add_(1)
    holder["own"].add_(1)
    assert kept.undo(torch.tensor(True)) is None
    assert weight.sum() == 4
    assert holder["own"].sum() == 0
