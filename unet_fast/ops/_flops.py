"""Floating-point operations of the operators that contain matrix products, for ``torch.utils.flop_counter``.

As there, a multiplication and an addition count as two, and whatever is not a product counts for nothing. The formulas
stand in the operators' records.

Imported by the layers and the networks, not by the operators: torch's counter loads Triton, which takes longer than all of
this package, and a data loader that only warps images has no use for it.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

from unet_fast.ops import _library, _record

if _library.CPU.error is None:
    for _operator in _record.operators():
        if _operator.flops is not None:
            register_flop_formula(getattr(torch.ops.unet_fast, _operator.name))(_operator.flops)
