"""What was replaced in a network, in words, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from unet_fast.accelerate.find import Found, Left
from unet_fast.accelerate.patch import patch_of


@dataclass
class Report:
    """What :func:`unet_fast.accelerate` did; ``print(report)`` shows it.

    Attributes:
        replaced: the modules whose forward was replaced: ``path``, ``what`` runs as one there.
        left: the modules left alone: ``path``, ``kind`` (their class), ``why``.
        before, after: seconds of a forward in evaluation on the example; NaN without one.
        largest_difference: of the outputs on the example, in evaluation.
        scale: the largest number of the outputs, to compare with.
        notes: anything else worth knowing, a sentence each.
    """

    model: nn.Module = field(repr=False)
    replaced: list[Found] = field(repr=False)
    left: list[Left] = field(repr=False)
    example: str = "none"
    before: float = float("nan")
    after: float = float("nan")
    largest_difference: float = float("nan")
    scale: float = float("nan")
    notes: list[str] = field(default_factory=list)

    def undo(self) -> None:
        """Take all replaced forwards out of the network; parameters and everything learnt since stay as they are."""
        for module in self.model.modules():
            patch = patch_of(module)
            if patch is not None:
                patch.remove()

    def __str__(self) -> str:
        lines = [f"{type(self.model).__name__}: {len(self.replaced)} modules replaced, {len(self.left)} left alone"]
        outer = [one for one in self.replaced if not self._inside(one)]
        if outer:
            lines.append("replaced (and what runs as one inside):")
            lines += [f"  {one.path or '(the network itself)'}: {one.what}" for one in outer]
        if self.left:
            lines.append("left alone:")
            reasons: dict[str, list[str]] = {}
            for one in self.left:
                reasons.setdefault(f"{one.kind}: {one.why}", []).append(one.path or "(the network itself)")
            lines += [f"  {_some(paths)} ({reason})" for reason, paths in reasons.items()]
        if self.before == self.before:
            lines.append(
                f"forward in evaluation on {self.example}: {1e3 * self.before:.1f} ms before, {1e3 * self.after:.1f} ms "
                f"after (x{self.after / self.before:.2f}), {torch.get_num_threads()} threads"
            )
            if self.replaced and self.after > 1.1 * self.before:
                lines.append(
                    "slower on this example: each replaced module costs some 0.1 ms of Python, which shows where images are small; "
                    "try one of the size that you use, or undo()"
                )
            lines.append(f"largest difference {self.largest_difference:.1e}, largest output {self.scale:.2g}")
        return "\n".join([*lines, *self.notes])

    def _inside(self, one: Found) -> bool:
        """Whether a replaced module holds this one, so that its line says it all."""
        return any(
            one is not other and (not other.path or one.path.startswith(other.path + ".")) for other in self.replaced
        )


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
