"""What was guessed, or left out, said aloud: a warning in Python, a line ``note: ...`` on the command line."""

from __future__ import annotations

import warnings


class Note(UserWarning):
    """Something that a file or a label does not say for sure, and how it was taken."""


def note(text: str) -> None:
    """Say ``text``, once for each text."""
    warnings.warn(text, Note, stacklevel=3)
