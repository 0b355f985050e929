"""A CUDA graph without a GPU: what PyTorch dispatches is written down and run again on the same memory."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# The host waits for a value in these.
SYNCHRONISING = (aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero)


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Tape(TorchDispatchMode):
    """The calls made under it, with their tensors.

    As on a GPU nothing of what is recorded has happened afterwards: what was written to is put back by `undo`.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self.made, self.before = set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in SYNCHRONISING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for storage in (t.untyped_storage() for t in tensors_in((args, kwargs))):
            if storage._cdata not in self.made and storage._cdata not in self.before:
                self.before[storage._cdata] = storage, storage.clone()
        out = func(*args, **kwargs)
        self.made |= {t.untyped_storage()._cdata for t in tensors_in(out)} - self.before.keys()
        if tensors_in((args, kwargs, out)):
            self.calls.append((func, args, kwargs, out))
        return out

    def undo(self):
        for storage, content in self.before.values():
            storage.copy_(content)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tensors_in(out), tensors_in(func(*args, **kwargs)), strict=True):
                # What an op wrote in place, or views, lies there already.
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class RecordedGraphs:
    """`gan_fast.train.graph.Graphs` on a CPU, with counts of what was asked of it."""

    def __init__(self):
        self.warm_ups = self.captures = self.replays = 0

    def warm_up(self, function):
        self.warm_ups += 1
        return function()

    def capture(self, function, generator):
        self.captures += 1
        generators = (generator, torch.default_generator)
        states = [g.get_state() for g in generators]
        tape = Tape()
        try:
            with tape:
                values = function()
        finally:
            tape.undo()
            for g, state in zip(generators, states, strict=True):
                g.set_state(state)
        # A user of the values before a replay must not find any.
        values.fill_(float("nan"))

        def replay():
            self.replays += 1
            tape.replay()

        return replay, values
