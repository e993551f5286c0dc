"""What the troubleshooting page quotes is what the program says."""

from __future__ import annotations

import re

from tests.support.docs_pages import ROOT, tokens

PAGE = "docs/troubleshooting.md"


def said():
    """Return all text that the package can say, literals that are written in parts joined."""
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    return re.sub(r"""["']\s*\n\s*[fr]?["']""", "", source)


def quoted():
    """Yield what the first column of the page's tables quotes."""
    cells = iter(tokens(PAGE))
    column = 0
    for token in cells:
        if token.type == "tr_open":
            column = 0
        elif token.type in ("td_open", "th_open"):
            column += 1
        elif token.type == "inline" and column == 1:
            yield from (each.content for each in token.children if each.type == "code_inline")


def test_what_is_quoted_is_said():
    text = said()
    names = {"max_downsample", "tome", "accelerate"}
    foreign = {"operator torchvision::nms does not exist"}
    found = [each for each in quoted() if not each.startswith("--")]
    assert len(found) > 25
    missing = [each for each in found if each not in text and each not in names | foreign]
    assert not missing
