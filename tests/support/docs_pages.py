"""The pages that users read, and what the tests look for in them."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "src/accel_search/demo/README.md"]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NOTEBOOK = ROOT / "docs" / "demo.ipynb"
PROGRAMS = ("accel-search", "accel-explore", "accel-report")
APPLIES = "accelerate("


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str
    line: int
    """Line of the page that the fence stands in, from 1."""


def tokens(name: str) -> list[Token]:
    """Return a page's tokens, as GitHub and the site read it."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return parser.parse((ROOT / name).read_text(encoding="utf-8"))


def blocks(name: str, *languages: str) -> list[Block]:
    """Return a page's fenced blocks in one of the languages."""
    return [
        Block(token.info.strip(), token.content, token.map[0] + 1)
        for token in tokens(name)
        if token.type == "fence" and token.info.strip() in languages
    ]


def project_in(name: str) -> dict[str, Any] | None:
    """Return the project that a page's first TOML block declares; None where it is none."""
    first = next(iter(blocks(name, "toml")), None)
    return None if first is None else tomllib.loads(first.text).get("project")


def inline(name: str) -> Iterator[Token]:
    """Yield the tokens inside a page's paragraphs, headings and cells."""
    for token in tokens(name):
        yield from token.children or ()


def links(name: str) -> Iterator[str]:
    """Yield what a page links to or shows."""
    for token in inline(name):
        if token.type in ("link_open", "image"):
            yield str(token.attrGet("href") or token.attrGet("src"))


def anchors(name: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    found: list[str] = []
    walked = tokens(name)
    for opening, content in zip(walked, walked[1:], strict=False):
        if opening.type == "heading_open":
            text = "".join(each.content for each in content.children or ())
            # What is neither a letter, a digit, a hyphen nor a blank is dropped.
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = sum(each == slug for each in found)
            found.append(f"{slug}-{count}" if count else slug)
    return set(found)


def commands(text: str) -> Iterator[list[str]]:
    """Yield each command of a console block in words, comments and variables left out.

    A command may go on in the next line after a backslash; `…` stands for options that the text
    leaves out.
    """
    for line in text.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word not in ("…", "&")]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            yield words


def commands_in(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command that a page shows, in a block or within a line, and where."""
    for block in blocks(name, "console", "bash"):
        if block.text.startswith("#!"):
            # Of a shell script, what it starts; the rest is the shell's.
            lines = [line for line in block.text.splitlines() if line.startswith(PROGRAMS)]
            yield from ((f"{name}:{block.line}", words) for words in commands("\n".join(lines)))
        else:
            yield from ((f"{name}:{block.line}", words) for words in commands(block.text))
    for span in spans(name):
        if span.startswith(tuple(f"{program} " for program in (*PROGRAMS, "make", "python"))):
            # `accel-report FILE` stands for any file.
            if not any(word.isupper() for word in span.split()):
                yield from ((f"{name}: `{span}`", words) for words in commands(span))


def spans(name: str) -> Iterator[str]:
    """Yield what a page sets in code within its lines."""
    for token in inline(name):
        if token.type == "code_inline":
            yield token.content.replace("\n", " ")


def applications_in(name: str) -> Iterator[tuple[str, str]]:
    """Yield each Python text of a page that accelerates a pipeline, after where it stands.

    That is in a block of Python, in what a program has printed, or within a line, where `…` stands
    for what is left out.
    """
    for block in blocks(name, "python"):
        if APPLIES in block.text:
            yield f"{name}:{block.line}", block.text
    for block in blocks(name, "text", "console", "bash"):
        yield from ((f"{name}:{block.line}", lines) for lines in printed_python(block.text))
    for span in spans(name):
        if APPLIES in span and not is_abridged(span):
            yield f"{name}: `{span}`", span


def printed_python(output: str) -> list[str]:
    """Return the Python that a program's output gives to use a result."""
    return [textwrap.dedent(part) for part in re.findall(r"^Use it:\n((?:  .*\n)+)", output, re.M)]


def is_abridged(span: str) -> bool:
    """Return whether code within a line leaves something out."""
    return "…" in span or "..." in span


def notebook_cells() -> list[dict[str, Any]]:
    """Return the notebook's cells of code."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]
