"""How `make docs` builds the site: from this folder's pages, with nothing from elsewhere."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import accel_search

project = "accel-search"
author = "the accel-search authors"
copyright = "the accel-search authors, MIT licensed"  # noqa: A001  Sphinx's own name for it.
release = version = accel_search.__version__

extensions = [
    "myst_nb",  # pages in Markdown, and the notebook with the outputs that it was committed with
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings in Google's style
    "sphinx_copybutton",
]
exclude_patterns = ["README.md"]

nitpicky = False

# GitHub's anchors, so that a link to a heading works there and here.
myst_heading_anchors = 4
myst_links_external_new_tab = False
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}  # They would be fetched from elsewhere.

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style")]
default_role = "code"  # Docstrings write `names` as Markdown does.

html_theme = "furo"
html_title = "accel-search"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#8ab8f0", "color-brand-content": "#8ab8f0"},
}
copybutton_exclude = ".linenos, .gp, .go"

_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*?\bsrc=[\"'](?:https?:)?//[^\"']*"
    r"|<link\b(?=[^>]*\brel=[\"'](?:stylesheet|preload|icon|preconnect))[^>]*?"
    r"\bhref=[\"'](?:https?:)?//[^\"']*"
    r"|@import\s+(?:url\()?[\"']?(?:https?:)?//[^\"')]*"
    r"|url\([\"']?(?:https?:)?//[^\"')]*"
)


def _refuse_what_loads_from_elsewhere(app: Sphinx, error: Exception | None) -> None:
    """End the build if a page or a style sheet of the site would ask another host for anything."""
    if error is not None or app.builder.name != "html":
        return
    for path in sorted(Path(app.outdir).rglob("*")):
        if path.suffix in {".html", ".css"}:
            found = _LOADED.search(path.read_text(encoding="utf-8"))
            if found:
                raise ExtensionError(f"{path.name} loads from elsewhere: {found[0][-120:]}")


def _take_in_new_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """List pages that the table of contents does not name yet under a heading of their own."""
    if docname != "index":
        return
    named = {line for line in source[0].splitlines() if re.fullmatch(r"[\w*/]+", line)}
    new = [
        page
        for page in sorted(app.env.found_docs - {"index"})
        if not any(fnmatch(page, name) for name in named)
    ]
    if new:
        source[0] += "\n".join(["\n```{toctree}", ":caption: More", "", *new, "```", ""])


_attribute_texts: dict[str, list[str]] = {}


def _keep(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep an attribute's text from napoleon, which takes what precedes a colon for its type."""
    if what == "attribute":
        _attribute_texts[name] = list(lines)


def _restore(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put back what `_keep` kept."""
    if what == "attribute":
        lines[:] = _attribute_texts.pop(name, lines)


def setup(app: Sphinx) -> None:
    """Connect what the build needs beside its extensions."""
    app.connect("source-read", _take_in_new_pages)
    app.connect("build-finished", _refuse_what_loads_from_elsewhere)
    app.connect("autodoc-process-docstring", _keep, priority=400)
    app.connect("autodoc-process-docstring", _restore, priority=600)
