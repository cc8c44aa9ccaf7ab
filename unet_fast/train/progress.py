"""The progress bar of a run, which must not end the run when nobody can see it any more."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Bar:
    """A bar of steps or seconds on stderr where that is a terminal; it vanishes when the terminal is closed."""

    def __init__(self, total: float, initial: float, *, by_steps: bool, shown: bool) -> None:
        visible = shown and sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
        self.total = total
        self._bar: tqdm | None = None
        if visible:
            self._bar = tqdm(
                total=total,
                initial=min(total, initial),
                desc="training",
                bar_format=None if by_steps else "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}",
                dynamic_ncols=True,
            )

    def show(self, position: float, text: str | None = None) -> None:
        """Move to ``position``; ``text`` stands behind the bar from now on."""
        if self._bar is None:
            return
        try:
            if text is not None:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(min(self.total, position) - self._bar.n)
        except (OSError, ValueError):
            self._bar = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            try:
                self._bar.close()
            except (OSError, ValueError):
                self._bar = None
