"""A CLIP tokenizer whose vocabulary spells any text but holds each of our words as one token.

The published 49,408-token vocabulary would cost more in embeddings than the whole demo weighs.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTokenizer

from training import scenes

CONTEXT_LENGTH = 20
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Merge the most frequent pair, ties in alphabetical order, until each word is one token."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(symbols) > 1 for symbols in spelled):
        pairs = Counter(pair for symbols in spelled for pair in itertools.pairwise(symbols))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols in spelled:
            place = 0
            while place < len(symbols) - 1:
                if (symbols[place], symbols[place + 1]) == best:
                    symbols[place : place + 2] = ["".join(best)]
                place += 1
    return merges


def build_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer shared by the pipeline and the scorer."""
    merges = learn_merges(scenes.WORDS)
    letters = sorted(ByteLevel.alphabet())
    symbols = letters + [letter + "</w>" for letter in letters] + ["".join(m) for m in merges]
    # open_clip pools at the largest id of a sequence, so the end token has to come last; and a
    # padding token of its own keeps that position unique.
    symbols = [*dict.fromkeys(symbols), PAD, BOS, EOS]
    return CLIPTokenizer(
        vocab={symbol: index for index, symbol in enumerate(symbols)},
        merges=merges,
        pad_token=PAD,
        model_max_length=CONTEXT_LENGTH,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save for both the fast (tokenizer.json) and the older vocabulary-and-merges loaders."""
    tokenizer.save_pretrained(folder)
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    text = json.dumps(vocabulary, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learn_merges(scenes.WORDS))]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


class CaptionEncoder:
    """Turn scenes into token ids without leaving the device they are on."""

    def __init__(self, device: torch.device | str, tokenizer: CLIPTokenizer | None = None) -> None:
        tokenizer = tokenizer or build_tokenizer()
        vocabulary = tokenizer.get_vocab()
        ids = [vocabulary[word + "</w>"] for word in scenes.WORDS]
        # The last entry is what index -1, the padding of `caption_words`, looks up.
        self.word_ids = torch.tensor([*ids, vocabulary[PAD]], device=device)
        self.bos, self.eos, self.pad = vocabulary[BOS], vocabulary[EOS], vocabulary[PAD]
        self.vocab_size = len(vocabulary)

    def __call__(self, batch: Tensor) -> Tensor:
        """Encode scenes `[n, FIELDS]` as token ids, int64 `[n, CONTEXT_LENGTH]`."""
        words = scenes.caption_words(batch)
        ids = torch.full((len(batch), CONTEXT_LENGTH), self.pad, device=batch.device)
        ids[:, 0] = self.bos
        ids[:, 1 : 1 + words.shape[1]] = self.word_ids[words]
        end = 1 + (words >= 0).sum(1, keepdim=True)
        return ids.scatter(1, end, self.eos)

    def empty(self) -> Tensor:
        """Token ids of the empty caption, int64 `[CONTEXT_LENGTH]`."""
        ids = torch.full((CONTEXT_LENGTH,), self.pad, device=self.word_ids.device)
        ids[0], ids[1] = self.bos, self.eos
        return ids
