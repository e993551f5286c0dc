"""CLIP's tokenizer, made from the vocabulary that open_clip ships.

All three architectures use OpenAI's 49,408 tokens; they differ in the token that fills a prompt up.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TOKENS = 49_408
LENGTH = 77
"""Tokens that CLIP's text encoders take."""
START, END = "<|startoftext|>", "<|endoftext|>"
ZERO = "!"
"""Token 0, with which open_clip's encoders were trained to be filled up."""


PADS = {
    "SD1.5": {"tokenizer": END},
    "SD2.1": {"tokenizer": ZERO},
    "SDXL": {"tokenizer": END, "tokenizer_2": ZERO},
}
"""Architecture -> tokenizer -> the token that fills a prompt up."""


def clip_tokenizer(pad: str = END) -> Any:
    """Return a CLIPTokenizer; the same as of the published folders.

    Args:
        pad: Token that fills a prompt up.
    """
    return tokenizer_of(*_vocabulary(), model_max_length=LENGTH, pad_token=pad)


def tokenizer_of(
    vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]], **options: Any
) -> Any:
    """Return a CLIPTokenizer of a vocabulary: of files, as transformers 4 takes nothing else.

    Args:
        vocabulary: Token -> number.
        merges: Pairs of tokens that are merged, the first ones first.
        options: Of the tokenizer.
    """
    from transformers import CLIPTokenizer

    with TemporaryDirectory() as folder:
        files = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        lines = ["#version: 0.2", *map(" ".join, merges)]
        for path, text in zip(files, (json.dumps(vocabulary), "\n".join(lines)), strict=True):
            path.write_text(text, encoding="utf-8")
        return CLIPTokenizer(*map(str, files), **options)


@cache
def _vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Return token -> number, and the pairs of tokens that are merged, the first ones first."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe

    letters = list(bytes_to_unicode().values())
    count = TOKENS - 2 * len(letters) - len((START, END))
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        next(file)  # Its version.
        merges = tuple(tuple(next(file).split()) for _ in range(count))
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    return {word: number for number, word in enumerate(words)}, merges  # type: ignore[return-value]
