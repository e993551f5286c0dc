"""Render self-contained HTML pages: style and script inside, nothing else may run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = files("accel_search.report.html") / "templates"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    # Everything is escaped, whatever a template is called: prompts and messages are untrusted.
    # `tojson` writes `<`, `>`, `&` and `'` as \u003c and so on, so that no text in the data can
    # end its script element.
    return Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read(name: str) -> str:
    """Return a file of the templates' folder."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Return a page.

    Its content security policy allows only the hashes of its style and its script, so that even
    a text that escaping missed cannot run.
    """
    style, script = read("style.css"), read("report.js")
    return (
        _environment()
        .get_template(template)
        .render(style=style, script=script, policy=_policy(style, script), **values)
    )


def render_text(template: str, **values: Any) -> str:
    """Return a text other than HTML, from a template in which nothing is escaped."""
    return _environment().overlay(autoescape=False).get_template(template).render(**values)


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
