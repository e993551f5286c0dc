"""Remove secrets from text that is printed, logged or stored."""

from __future__ import annotations

import os
import re

_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY", re.IGNORECASE)
"""Environment variables whose values are secrets."""
_SECRET_SHAPES = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "***"),
    (re.compile(r"(\w+://[^\s:/@]*:)[^\s@]+@"), r"\1***@"),  # A password in a URL.
)
_LEAST_SECRET = 8
"""Characters below which a value is taken for a setting, such as `TOKEN_LIMIT=77`."""


def without_secrets(text: str) -> str:
    """Return a text without hub tokens, passwords in URLs and the environment's secrets."""
    for name, value in os.environ.items():
        if len(value) >= _LEAST_SECRET and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    for shape, instead in _SECRET_SHAPES:
        text = shape.sub(instead, text)
    return text
