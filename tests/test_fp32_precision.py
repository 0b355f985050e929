"""However a user sets torch's float32 precision, gan_fast reads it, never raises, and restores it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from test_backends import run

from gan_fast import fp32_precision

# Statement -> the settings that it leads to without gan_fast, and those with a run of gan_fast in between.
Found = dict[str, tuple[list[list[str]], dict[str, Any]]]

# Each statement runs in a forked process, since some settings cannot be undone.
STATEMENTS = [
    "pass",
    "b.fp32_precision = 'ieee'",
    "b.fp32_precision = 'tf32'",
    "b.fp32_precision = 'bf16'",
    "b.cudnn.fp32_precision = 'ieee'",
    "b.cudnn.fp32_precision = 'tf32'; b.cudnn.conv.fp32_precision = 'none'",
    "b.cudnn.conv.fp32_precision = 'ieee'",
    "b.cudnn.rnn.fp32_precision = 'ieee'",
    "b.cudnn.rnn.fp32_precision = 'none'; b.cudnn.conv.fp32_precision = 'tf32'",
    "b.cuda.matmul.fp32_precision = 'tf32'",
    "b.cuda.matmul.fp32_precision = 'ieee'; b.fp32_precision = 'tf32'",
    "b.mkldnn.fp32_precision = 'bf16'",
    "b.mkldnn.set_flags(_fp32_precision='tf32')",
    "b.mkldnn.matmul.fp32_precision = 'bf16'",
    "b.mkldnn.conv.fp32_precision = 'tf32'; b.mkldnn.rnn.fp32_precision = 'ieee'",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "b.cudnn.allow_tf32 = False",
    "b.cuda.matmul.allow_tf32 = True",
    "b.cuda.matmul.allow_tf32 = True; b.cuda.matmul.fp32_precision = 'ieee'",
    "b.cuda.matmul.fp32_precision = 'ieee'; b.cuda.matmul.allow_tf32 = True",
    "b.cudnn.conv.fp32_precision = 'ieee'; b.cudnn.allow_tf32 = True; b.cudnn.rnn.fp32_precision = 'ieee'",
    "torch.set_float32_matmul_precision('high'); b.fp32_precision = 'ieee'; b.cuda.matmul.fp32_precision = 'none'",
    "b.fp32_precision = 'tf32'; b.cudnn.allow_tf32 = False; torch.set_float32_matmul_precision('highest')",
    "b.cudnn.conv.fp32_precision = 'ieee'; b.disable_global_flags()",
]

PROGRAM = """
import json, os, warnings
import torch
from gan_fast import backends, fp32_precision, ops, self_check
from gan_fast.ops import conv
from gan_fast.train import graph

warnings.simplefilter("ignore")
torch.set_num_threads(1)
b = torch.backends

def read(getter):
    try:
        return str(getter())
    except RuntimeError:
        return "raises"

def state():
    ops_of = [b.cudnn.conv, b.cudnn.rnn, b.cuda.matmul, b.mkldnn.conv, b.mkldnn.rnn, b.mkldnn.matmul]
    older = [
        lambda: b.cudnn.allow_tf32, lambda: b.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision,
        lambda: b.mkldnn.allow_tf32,
    ]
    newer = [b.fp32_precision, b.cudnn.fp32_precision, b.mkldnn.fp32_precision, *(o.fp32_precision for o in ops_of)]
    return [*newer, *map(read, older)]

def states_as_parents_change():
    # A setting that inherits must still inherit afterwards, which shows when its parents change.
    found = [state()]
    for backend, op in (("generic", "all"), ("cuda", "all"), ("mkldnn", "all")):
        for value in ("ieee", "tf32", "none"):
            torch._C._set_fp32_precision_setter(backend, op, value)
            found.append(state())
    return found

def without_gan_fast(statement):
    exec(statement)
    return states_as_parents_change()

def with_gan_fast(statement):
    def cache_keys():
        return [list(graph._torch_settings([torch.zeros(1)])), list(conv._settings())]

    first, fresh = cache_keys(), state()
    exec(statement)
    found = {"before": state(), "changed": state() != fresh, "detected": cache_keys() != first}
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with backends.use_backend("cpu"):
        ops.conv2d(x, weight).sum().backward()
    backends.info()
    found["op ok"] = self_check.check(["leaky_relu"]).ok
    try:
        with fp32_precision.full():
            found["inside"] = list(fp32_precision.current())
            raise KeyError
    except KeyError:
        found["after"] = states_as_parents_change()
    return found

def in_child(function, statement):
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        with os.fdopen(sink, "w") as file:
            file.write(json.dumps(function(statement)))
            file.flush()
            os._exit(0)
    os.close(sink)
    with os.fdopen(source) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None

functions = without_gan_fast, with_gan_fast
print(json.dumps({s: [in_child(function, s) for function in functions] for s in json.loads(os.environ["STATEMENTS"])}))
"""


@pytest.fixture(scope="module")
def found() -> Found:
    found: Found = json.loads(run(PROGRAM, STATEMENTS=json.dumps(STATEMENTS)).stdout)
    return found


@pytest.mark.parametrize("statement", STATEMENTS)
def test_settings_are_detected_and_restored(statement: str, found: Found) -> None:
    expected, actual = found[statement]
    assert actual is not None, "raised"
    assert actual["op ok"]
    assert actual["detected"] == actual["changed"] or "disable_global_flags" in statement
    assert set(actual["inside"]) == {"ieee"}
    assert actual["before"] == expected[0]
    assert actual["after"] == expected


def test_info_checks_ops_under_mixed_settings() -> None:
    code = """
import torch
torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "ieee"
torch.backends.cuda.matmul.fp32_precision = "ieee"
from gan_fast import cli
raise SystemExit(cli.main(["info"]))
"""
    assert " ops ok in " in run(code).stdout


def test_precision_is_read_by_backend_and_op() -> None:
    assert fp32_precision.of("cuda", "matmul") == torch.backends.cuda.matmul.fp32_precision
    assert fp32_precision.of("mkldnn", "conv") == torch.backends.mkldnn.conv.fp32_precision
