"""A stand-in for CUDA graphs on a CPU: records the ops that PyTorch dispatches and reruns them on the same memory."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# Ops in which the host waits for a value.
SYNCHRONIZING = (aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero)


class NoReadBack(TorchDispatchMode):
    """Fail where the host would wait for a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in SYNCHRONIZING, func
        return func(*args, **(kwargs or {}))


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Tape(TorchDispatchMode):
    """Record the ops that are called under it, with their tensors.

    Capturing on a GPU does not run the ops, so `undo` restores the memory that they wrote here.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self.made, self.before = set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in SYNCHRONIZING:
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
                # An op that writes in place or returns a view has updated the old tensor already.
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class RecordedGraphs:
    """`gan_fast.train.graph.Graphs` on a CPU, which counts its calls."""

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
        # The values are undefined until the first replay.
        values.fill_(float("nan"))

        def replay():
            self.replays += 1
            tape.replay()

        return replay, values
