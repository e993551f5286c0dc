"""The demo's world: scenes of coloured shapes and their captions.

A scene is one row of integers, so that millions of them can be sampled, captioned, compared and
drawn in batches on a GPU. `caption_words` is the only place where wording is decided: the text that
people read and the tokens that models see both come from it.

Some scenes are **reserved**: `is_reserved` holds for one scene in 32, by a hash of what the scene
means (not of its wording, so that "A above B" and "B below A" fall on the same side). Reserved
scenes are never drawn, captioned or used as a negative in training; the prompts of the finished
demo are taken from them.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterable

import torch
from torch import Tensor

IMAGE_SIZE = 128
MAX_OBJECTS = 4
RESERVED_ONE_IN = 32

# RGB in [0, 1], chosen far apart from each other and from every background.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.08, 0.10),
    "orange": (1.00, 0.52, 0.00),
    "yellow": (1.00, 0.87, 0.05),
    "lime": (0.60, 0.95, 0.25),
    "green": (0.04, 0.52, 0.18),
    "cyan": (0.10, 0.82, 0.90),
    "blue": (0.10, 0.28, 0.95),
    "purple": (0.52, 0.14, 0.72),
    "pink": (1.00, 0.52, 0.76),
    "brown": (0.48, 0.26, 0.09),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.04),
    "gray": (0.55, 0.55, 0.55),
    "navy": (0.07, 0.08, 0.32),
    "beige": (0.93, 0.87, 0.72),
    "lavender": (0.80, 0.77, 0.95),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
PLURALS = ("circles", "squares", "triangles", "stars", "hearts", "diamonds", "crosses", "rings")
SIZES = ("small", "large")
COUNTS = ("two", "three", "four")
KINDS = ("single", "pair", "row")
PLACES = ("center", "top", "bottom", "left", "right")  # layouts of a single object
RELATIONS = (("above",), ("below",), ("left", "of"), ("right", "of"))  # layouts of a pair
LINES = ("row", "column")  # layouts of a row

# Columns of a scene. Columns that a kind does not use are zero.
KIND, BACKGROUND, COLOR_1, SHAPE_1, SIZE_1, COLOR_2, SHAPE_2, SIZE_2, LAYOUT, COUNT = range(10)
FIELDS = 10
SINGLE, PAIR, ROW = range(3)

# How often each kind is sampled. Pairs are the hardest to learn and by far the most varied.
KIND_SHARES = (0.25, 0.55, 0.20)

# The values each column takes, by kind (1: unused). The order fixes `scene_code`.
CARDINALITY = (
    (3, len(BACKGROUNDS), len(COLORS), len(SHAPES), len(SIZES), 1, 1, 1, len(PLACES), 1),
    (
        *(3, len(BACKGROUNDS), len(COLORS), len(SHAPES), len(SIZES)),
        *(len(COLORS), len(SHAPES), len(SIZES), len(RELATIONS), 1),
    ),
    (3, len(BACKGROUNDS), len(COLORS), len(SHAPES), 1, 1, 1, 1, len(LINES), len(COUNTS)),
)
# Columns that `mutate` may change, by kind, repeated to one length so that one draw picks one.
_MUTABLE = (
    (BACKGROUND, COLOR_1, SHAPE_1, SIZE_1, LAYOUT) * 8,
    (BACKGROUND, COLOR_1, SHAPE_1, SIZE_1, COLOR_2, SHAPE_2, SIZE_2, LAYOUT) * 5,
    (BACKGROUND, COLOR_1, SHAPE_1, LAYOUT, COUNT) * 8,
)

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *("a", "on", "background", "at", "the", "in", *COLORS, *BACKGROUNDS, *SHAPES),
            *(*PLURALS, *SIZES, *COUNTS, *PLACES, *itertools.chain(*RELATIONS), *LINES),
        ]
    )
)
_WORD_ID = {word: index for index, word in enumerate(WORDS)}
MAX_WORDS = 14  # "a s c s left of a s c s on a b background" is the longest


@functools.lru_cache(maxsize=256)
def table(values: tuple[object, ...], device: torch.device) -> Tensor:
    """Return constants on a device, uploaded once: an upload breaks the capture of a CUDA graph."""
    return torch.tensor(values, device=device)


def sample_scenes(
    n: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    *,
    reserved: bool = False,
    kind_shares: tuple[float, float, float] = KIND_SHARES,
) -> Tensor:
    """Draw scenes at random, all trainable or all reserved.

    Args:
        n: Number of scenes.
        generator: Source of randomness, on `device`.
        device: Where the scenes are made.
        reserved: Return only reserved scenes instead of only trainable ones.
        kind_shares: Probability of a single object, a pair and a row.

    Returns:
        int64 `[n, FIELDS]`.
    """
    device = torch.device(device)
    parts: list[Tensor] = []
    missing = n
    while missing > 0:
        draw = int(missing * (RESERVED_ONE_IN * 1.2 if reserved else 1.1)) + 64
        scenes = _sample_any(draw, generator, device, kind_shares)
        scenes = scenes[is_reserved(scenes) == reserved][:missing]
        parts.append(scenes)
        missing -= len(scenes)
    return torch.cat(parts)


def _sample_any(
    n: int,
    generator: torch.Generator | None,
    device: torch.device,
    kind_shares: tuple[float, float, float],
) -> Tensor:
    def uniform() -> Tensor:
        return torch.rand(n, generator=generator, device=device)

    edges = table(kind_shares, device).cumsum(0)[:2]
    kind = torch.bucketize(uniform(), edges, right=True)
    highest = table(CARDINALITY, device)[kind]
    draws = torch.rand(n, FIELDS, generator=generator, device=device)
    scenes = torch.minimum((draws * highest).long(), highest - 1)
    scenes[:, KIND] = kind
    # The two colours of a pair differ: otherwise a blend of both would be as right as either.
    other = torch.minimum((uniform() * (len(COLORS) - 1)).long(), highest[:, COLOR_2] - 1)
    shifted = (scenes[:, COLOR_1] + 1 + other) % len(COLORS)
    scenes[:, COLOR_2] = torch.where(kind == PAIR, shifted, 0)
    return scenes


def canonical(scenes: Tensor) -> Tensor:
    """Rewrite "below" as "above" and "right of" as "left of", exchanging the two objects."""
    # Slices rather than lists: a list of indices would be uploaded, see `table`.
    first, second = slice(COLOR_1, SIZE_1 + 1), slice(COLOR_2, SIZE_2 + 1)
    turned = scenes.clone()
    turned[:, first], turned[:, second] = scenes[:, second], scenes[:, first]
    turned[:, LAYOUT] = scenes[:, LAYOUT] - 1
    backwards = (scenes[:, KIND] == PAIR) & (scenes[:, LAYOUT] % 2 == 1)
    return torch.where(backwards[:, None], turned, scenes)


def scene_code(scenes: Tensor) -> Tensor:
    """Number scenes by meaning: two wordings of one scene share a code, two scenes never do.

    Args:
        scenes: int64 `[n, FIELDS]`.

    Returns:
        int64 `[n]`, below 2**31.
    """
    scenes = canonical(scenes)
    highest = [max(values) for values in zip(*CARDINALITY, strict=True)]
    code = torch.zeros_like(scenes[:, 0])
    for column, values in enumerate(highest):
        code = code * values + scenes[:, column]
    return code


def is_reserved(scenes: Tensor) -> Tensor:
    """Return which scenes are kept out of training, bool `[n]`."""
    # Knuth's multiplicative hash; the product stays below 2**63.
    mixed = (scene_code(scenes) * 2654435761) % 2**32
    return (mixed >> 16) % RESERVED_ONE_IN == 0


def mutate(scenes: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Change exactly one attribute of each scene, or exchange the two colours of a pair.

    Args:
        scenes: int64 `[n, FIELDS]`.
        generator: Source of randomness, on the scenes' device.

    Returns:
        int64 `[n, FIELDS]`: the hard negatives. A pair may end with two equal colours, which is
        never sampled but is still a valid caption. Some may be reserved: mask those out.
    """
    n, device = len(scenes), scenes.device
    options = table(_MUTABLE, device)[scenes[:, KIND]]
    pick = torch.rand(n, 1, generator=generator, device=device) * options.shape[1]
    column = options.gather(1, pick.long().clamp(max=options.shape[1] - 1))
    highest = table(CARDINALITY, device)[scenes[:, KIND]].gather(1, column)
    draw = torch.rand(n, 1, generator=generator, device=device)
    shift = 1 + torch.minimum((draw * (highest - 1)).long(), (highest - 2).clamp(min=0))
    changed = scenes.scatter(1, column, (scenes.gather(1, column) + shift) % highest)
    exchanged = scenes.clone()
    exchanged[:, COLOR_1], exchanged[:, COLOR_2] = scenes[:, COLOR_2], scenes[:, COLOR_1]
    exchange = torch.rand(n, generator=generator, device=device) < 0.15
    return torch.where((exchange & (scenes[:, KIND] == PAIR))[:, None], exchanged, changed)


def caption_words(scenes: Tensor) -> Tensor:
    """Spell scenes as indices into `WORDS`.

    Args:
        scenes: int64 `[n, FIELDS]`.

    Returns:
        int64 `[n, MAX_WORDS]`, padded at the end with -1.
    """
    device, n = scenes.device, len(scenes)

    def constant(word: str) -> Tensor:
        return torch.full((n,), _WORD_ID[word], device=device)

    def pick(words: Iterable[str], column: int) -> Tensor:
        ids = table(tuple(_WORD_ID[word] for word in words), device)
        return ids[scenes[:, column].clamp(max=len(ids) - 1)]

    skip = torch.full((n,), -1, device=device)
    ground = [constant("on"), constant("a"), pick(BACKGROUNDS, BACKGROUND)]
    ground.append(constant("background"))
    first = [pick(SIZES, SIZE_1), pick(COLORS, COLOR_1), pick(SHAPES, SHAPE_1)]
    second = [pick(SIZES, SIZE_2), pick(COLORS, COLOR_2), pick(SHAPES, SHAPE_2)]
    relation = pick([words[0] for words in RELATIONS], LAYOUT)
    of = torch.where(scenes[:, LAYOUT] >= 2, _WORD_ID["of"], skip)
    single = [constant("a"), *first, constant("at"), constant("the"), pick(PLACES, LAYOUT), *ground]
    pair = [constant("a"), *first, relation, of, constant("a"), *second, *ground]
    row = [pick(COUNTS, COUNT), pick(COLORS, COLOR_1), pick(PLURALS, SHAPE_1)]
    row += [constant("in"), constant("a"), pick(LINES, LAYOUT), *ground]

    stacked = torch.stack(
        [torch.stack(words + [skip] * (MAX_WORDS - len(words)), 1) for words in (single, pair, row)]
    )
    words = stacked[scenes[:, KIND], torch.arange(n, device=device)]
    # "above" is one word and "left of" two: close the gap, keeping the order.
    order = (words < 0).to(torch.int8).argsort(dim=1, stable=True)
    return words.gather(1, order)


def captions(scenes: Tensor) -> list[str]:
    """Return the caption of each scene."""
    rows = caption_words(scenes).tolist()
    return [" ".join(WORDS[index] for index in row if index >= 0) for row in rows]


def parse_caption(caption: str) -> Tensor:
    """Read a caption back into its scene.

    Args:
        caption: A sentence of this grammar.

    Returns:
        int64 `[FIELDS]`.

    Raises:
        ValueError: The caption is not of this grammar.
    """
    words = caption.split()
    scene = [0] * FIELDS
    try:
        if words[0] in COUNTS:
            count, color, shape, _, _, line, _, _, ground, _ = words
            scene[KIND], scene[COUNT] = ROW, COUNTS.index(count)
            scene[SHAPE_1], scene[LAYOUT] = PLURALS.index(shape), LINES.index(line)
        elif words[4] == "at":
            _, size, color, shape, _, _, place, _, _, ground, _ = words
            scene[KIND], scene[SIZE_1] = SINGLE, SIZES.index(size)
            scene[SHAPE_1], scene[LAYOUT] = SHAPES.index(shape), PLACES.index(place)
        else:
            if words[5] == "of":
                del words[5]
            _, size, color, shape, relation, _, size_2, color_2, shape_2, _, _, ground, _ = words
            scene[KIND], scene[SIZE_1], scene[SIZE_2] = PAIR, SIZES.index(size), SIZES.index(size_2)
            scene[SHAPE_1], scene[SHAPE_2] = SHAPES.index(shape), SHAPES.index(shape_2)
            scene[LAYOUT] = [words[0] for words in RELATIONS].index(relation)
            scene[COLOR_2] = list(COLORS).index(color_2)
        scene[COLOR_1] = list(COLORS).index(color)
        scene[BACKGROUND] = list(BACKGROUNDS).index(ground)
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a caption of this grammar: {caption!r}") from error
    if captions(torch.tensor([scene])) != [caption]:
        raise ValueError(f"not a caption of this grammar: {caption!r}")
    return torch.tensor(scene)


def parse_captions(texts: list[str]) -> Tensor:
    """Read captions back into scenes, int64 `[n, FIELDS]`."""
    return torch.stack([parse_caption(text) for text in texts])


def held_out_scenes(
    n: int, seed: int, shares: tuple[float, float, float] = (0.3, 0.4, 0.3)
) -> Tensor:
    """Choose reserved scenes so that any stretch of them covers the world evenly.

    At each place the kind that lags its share is taken, and of 200 candidates of that kind the one
    whose attributes have been used least so far. No two have the same meaning.

    Args:
        n: Number of scenes.
        seed: Fixes the choice.
        shares: Share of single objects, pairs and rows.

    Returns:
        int64 `[n, FIELDS]`, in an order with the kinds mixed.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffle = random.Random(seed)
    pools = []
    for kind in range(len(KINDS)):
        only = tuple(float(index == kind) for index in range(len(KINDS)))
        drawn = sample_scenes(4000, generator, reserved=True, kind_shares=only)  # type: ignore[arg-type]
        unique = {
            int(code): row for code, row in zip(scene_code(drawn), drawn.tolist(), strict=True)
        }
        pools.append(list(unique.values()))
    kinds = [kind for kind, share in enumerate(shares) for _ in range(math.ceil(share * 10))]
    used: dict[tuple[int, int, int], int] = {}
    chosen: list[list[int]] = []
    while len(chosen) < n:
        if len(chosen) % len(kinds) == 0:
            shuffle.shuffle(kinds)
        kind = kinds[len(chosen) % len(kinds)]
        pool = pools[kind]
        candidates = shuffle.sample(range(len(pool)), min(200, len(pool)))

        def attributes(scene: list[int], kind: int = kind) -> list[tuple[int, int, int]]:
            present = [c for c in range(1, FIELDS) if CARDINALITY[kind][c] > 1]
            return [(kind, column, scene[column]) for column in present]

        best = min(candidates, key=lambda i: sum(used.get(a, 0) for a in attributes(pool[i])))
        scene = pool.pop(best)
        for attribute in attributes(scene):
            used[attribute] = used.get(attribute, 0) + 1
        chosen.append(scene)
    return torch.tensor(chosen)
