"""Hostile calls of torch.ops.unet_fast.*, which compiled and exported programs call without our Python: errors, no crashes."""

from __future__ import annotations

import numpy as np

from tests import processes

# every argument of a good call is replaced, one at a time and two at a time, by values of other shapes, dtypes and layouts
CODE = r"""
import itertools, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from unet_fast.ops import _record, use_backend
torch.set_num_threads(1)
O, f = torch.ops.unet_fast, torch.rand
seed = int(sys.argv[1])
random = __import__("random").Random(seed)

def ints(*shape, high=2, dtype=torch.int64):
    return torch.randint(0, high, shape, dtype=dtype)

# what the records' samples call, forward and backward
GOOD = {}

class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function.namespace == "unet_fast":
            copies = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), arguments)
            GOOD.setdefault(function._schema.name.split("::")[1], copies)
        return function(*arguments, **(named or {}))

draw = _record.Draw(torch.Generator().manual_seed(seed), torch.float32)
for op in _record.OPS.values():
    tensors = op.with_leaves(op.sample(draw, 2, 9, 8))
    with Seen(), use_backend("cpp"):  # by "auto" small maps are torch's
        op.results(tensors)

# what they do not, and what has more arguments than they give
GOOD |= {
    "weighted_cross_entropy": (f(2, 3, 5, 6), ints(2, 5, 6), f(2, 5, 6), -100, 2, True),
    "weighted_cross_entropy_backward": (torch.tensor(1.0), f(2, 3, 5, 6)),
    "dice_cross_entropy": (f(2, 3, 5, 6), ints(2, 5, 6), f(2, 5, 6), f(3), -100, 0.1, False, 1.0, 1.0, 1e-5, 1e-5, True, False, True),
    "region_sums": (f(2, 3, 5, 6), f(2, 3, 5, 6), f(2, 5, 6), f(3), -100, 0.0, True, True),
    "dice_cross_entropy_backward": (f(2, 7).double(), f(2, 3, 5, 6), ints(2, 5, 6), f(2, 5, 6), f(3), -100, 0.1, False, True),
    "weight_map": (ints(2, 7, 8, dtype=torch.int32), 10.0, 5.0, f(2), False, False),
    "elastic_warp": ([f(2, 1, 9, 8), ints(2, 1, 9, 8)], f(2, 2, 3, 3), f(2, 2, 3), [5, 6, 9, 8], [1, 0], [0.0, 0.0], 0, 0),
    "elastic_warp_backward": ([f(2, 1, 5, 6)], f(2, 2, 3, 3), f(2, 2, 3), [9, 8], [1], 0, 0, False),
    "relu_pool_skip": (f(2, 3, 9, 8), f(3), [6, 6], 2, True),
    "relu_pool_skip_backward": (ints(2, 3, 5, 4, dtype=torch.uint8), f(2, 3, 4, 4), f(2, 5, 6, 6), [9, 8], True),
    "bias_relu": (f(2, 3, 5, 6), f(3)),
    "bias_relu_": (f(2, 3, 5, 6), f(3)),
    "bias_relu_backward": (f(2, 3, 5, 6), f(2, 3, 5, 6), True),
    "conv_bias_relu": (f(2, 3, 9, 8), f(4, 3, 3, 3), f(4), 1),
    "conv_bias_relu_backward": (f(2, 4, 9, 8), f(2, 3, 9, 8), f(4, 3, 3, 3), f(2, 4, 9, 8), 1, True, True, True),
    "conv3x3": ([f(2, 2, 9, 8), f(2, 1, 9, 8)], f(4, 3, 3, 3), f(4), None, 1, 1, 0.0),
    "conv3x3_backward": (f(2, 4, 9, 8), [f(2, 3, 9, 8)], f(4, 3, 3, 3), f(2, 4, 9, 8), 1, 0.0, True, True, True),
    "conv3x3_pool": ([f(2, 3, 9, 8)], f(4, 5, 3, 3), f(4), None, 1, [6, 6], 2, f(5, 3, 3, 3), f(5)),
    "conv3x3_weights": (f(4, 3, 3, 3), [2, 1]),
    "fingerprint": ([f(2, 3), f(4)],),
    "up_conv_into": (f(1, 4, 4, 4), f(4, 3, 2, 2), f(3), f(1, 5, 8, 8)),
    "up_conv": (f(1, 4, 4, 4), f(4, 3, 2, 2), f(3)),
    "up_conv_into_backward": (f(1, 5, 8, 8), f(1, 4, 4, 4), f(4, 3, 2, 2), True, True, True),
    "up_conv_crop_concat": (f(1, 4, 4, 4), f(4, 3, 2, 2), f(3), f(1, 2, 9, 10)),
    "head_cross_entropy": (f(2, 3, 5, 6), f(3), True, f(4, 3), f(4), ints(2, 5, 6), f(2, 5, 6), -100, 2, True),
}
names = {str(s).split("::")[1].split("(")[0].split(".")[0] for s in torch._C._jit_get_all_schemas() if str(s).startswith("unet_fast::")}
names = {n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(f"unet_fast::{n}", "CPU")}
assert names == set(GOOD), names ^ set(GOOD)

TENSORS = [torch.tensor(1.0), f(0), f(3), f(4, 5), f(2, 3, 4), f(1, 2, 400, 400), f(64, 2, 40, 40), f(2, 3, 5, 6, 7), f(1, 1, 1, 1),
    f(2, 3, 0, 6), f(0, 3, 5, 6), f(2, 3, 5, 6).double(), f(2, 3, 5, 6).half(), ints(2, 3, 5, 6), ints(2, 3, 5, 6).bool(),
    f(1).expand(1, 4, 8, 8), f(1).expand(2, 3, 5, 6), f(2, 6, 5, 3).permute(0, 3, 2, 1), f(4, 6, 10, 12)[::2, ::2, ::2, ::2],
    f(2, 3, 5, 6).to(memory_format=torch.channels_last), f(1, 2, 1, 100000), torch.full((2, 3, 5, 6), float("nan")), f(2, 1, 3, 3)]
NUMBERS = [-1, 0, 1, 3, 7, 2**31, 2**62, -(2**63)]

def others(value):
    if isinstance(value, torch.Tensor):
        return [*TENSORS, None, *((value[:0], value.flip(-1)[..., :1]) if value.dim() else ())]
    if isinstance(value, bool):
        return [not value]
    if value is None:
        return TENSORS
    if isinstance(value, int):
        return NUMBERS
    if isinstance(value, float):
        return [0.0, -1.0, float("nan"), float("inf"), 1e300]
    if isinstance(value[0], torch.Tensor):
        return [[], value[:1], value + value, [random.choice(TENSORS) for _ in value], [value[0], f(2, 1, 4, 4)]]
    kind = type(value[0])
    return [[], value[:1], value * 3, [kind(random.choice(NUMBERS))] * len(value), [kind(0)] * len(value), [kind(-5), kind(7)]]

def call(name, arguments):
    arguments = [a.clone(memory_format=torch.preserve_format) if isinstance(a, torch.Tensor) and name.endswith("_into") is False and a.is_contiguous() else a for a in arguments]
    try:
        getattr(O, name)(*arguments)
        return "good"
    except Exception as error:
        return type(error).__name__

done = 0
for name, arguments in GOOD.items():
    assert call(name, arguments) == "good", name
    calls = [(i, v) for i, a in enumerate(arguments) for v in others(a)]
    pairs = [random.sample(calls, 2) for _ in range(60)]
    for changes in [*([c] for c in calls), *pairs]:
        changed = list(arguments)
        for i, value in changes:
            changed[i] = value
        text = ", ".join(f"{tuple(a.shape)} {a.dtype} {a.stride()}" if isinstance(a, torch.Tensor) else repr(a) for a in changed)
        print(name, text[:1000], flush=True)
        call(name, changed)
        done += 1
print("DONE", done)
"""


def test_wrong_sizes_are_errors(rng: np.random.Generator) -> None:
    done = processes.run("-c", CODE, rng.integers(2**31), warm="torch")
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0, (
        f"ended with {done.returncode} at: {lines[-1] if lines else ''}\n{done.stderr.decode()[-2000:]}"
    )
    assert lines[-1].startswith("DONE") and int(lines[-1].split()[1]) > 1500
