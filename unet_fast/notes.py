"""What was guessed, or left out, said aloud: a warning in Python, a line ``note: ...`` on the command line."""

from __future__ import annotations

import warnings


class Note(UserWarning):
    """Something that a file or a label does not say for sure, and how it was taken; ``path`` is the file, if there is one."""

    def __init__(self, text: str, path: object = None) -> None:
        super().__init__(text if path is None else f"{path}: {text}")
        self.text = text


def note(text: str, path: object = None) -> None:
    """Say ``text`` about ``path``."""
    warnings.warn(Note(text, path), stacklevel=3)
