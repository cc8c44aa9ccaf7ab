"""The documentation site: ``make docs`` writes it to build/docs. A broken link or reference is an error."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import unet_fast

project = "unet_fast"
author = "the unet_fast authors"
version = release = unet_fast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
nitpicky = True
nitpick_ignore_regex = [
    # types of other packages, whose pages are not read while this site is built
    ("py:.*", r"(torch|numpy|np|nn|collections|pathlib|os|typing)\..*"),
    ("py:class", r"[A-Za-z]+(\[.*)?"),
    # classes that appear in signatures only, and have no place in the reference
    ("py:class", r"unet_fast\..*"),
    # functions of optional parts, described where they are used
    ("py:func", r"unet_fast\.deploy\.\w+\.\w+"),
]

autodoc_default_options = {"members": True, "imported-members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "unet_fast"
html_show_sphinx = False
exclude_patterns = ["images"]


def escape_stars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """A star in a shape, such as (N, C, *S), starts no emphasis."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)  # what is literal stays
        parts[::2] = [re.sub(r"\*(?=\w+[,)])", r"\\*", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", escape_stars)
