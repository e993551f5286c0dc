"""Draw the demo's scenes: objects are placed with jitter, then drawn anti-aliased."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.scenes import (
    BACKGROUND,
    BACKGROUNDS,
    COLOR_1,
    COLOR_2,
    COLORS,
    COUNT,
    IMAGE_SIZE,
    KIND,
    LAYOUT,
    MAX_OBJECTS,
    PAIR,
    ROW,
    SHAPE_1,
    SHAPE_2,
    SHAPES,
    SINGLE,
    SIZE_1,
    SIZE_2,
    table,
)


@dataclass(frozen=True)
class Geometry:
    """Where the objects of each scene are, in pixels.

    Attributes:
        shape: int64 `[n, MAX_OBJECTS]`, index into `SHAPES`.
        color: float32 `[n, MAX_OBJECTS, 3]`, RGB in [0, 1].
        center: float32 `[n, MAX_OBJECTS, 2]`, x and y, pixels.
        radius: float32 `[n, MAX_OBJECTS]`, pixels; 0 for an object that is absent.
        background: float32 `[n, 3]`, RGB in [0, 1].
    """

    shape: Tensor
    color: Tensor
    center: Tensor
    radius: Tensor
    background: Tensor


def place_objects(scenes: Tensor, generator: torch.Generator | None = None) -> Geometry:
    """Return positions and radii of the objects, with jitter that leaves the caption true.

    Args:
        scenes: int64 `[n, FIELDS]`.
        generator: Source of randomness, on the scenes' device.
    """
    n, device = len(scenes), scenes.device

    def constants(*values: object) -> Tensor:
        return table(values, device)

    def jitter(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator, device=device) * 2 - 1

    kind, layout, count = scenes[:, KIND], scenes[:, LAYOUT], scenes[:, COUNT]
    slot = torch.arange(MAX_OBJECTS, device=device)
    sizes = torch.stack([scenes[:, SIZE_1]] + [scenes[:, SIZE_2]] * (MAX_OBJECTS - 1), 1)

    # Everything below is in units of the image's side; the centre is 0.
    offset = torch.where(sizes[:, :1] == 0, 0.29, 0.19)
    places = constants((0.0, 0.0), (0.0, -1.0), (0.0, 1.0), (-1.0, 0.0), (1.0, 0.0))
    single = places[layout.clamp(max=4)] * offset
    single = single[:, None] + jitter(1, 2) * 0.03
    relations = constants((0.0, -1.0), (0.0, 1.0), (-1.0, 0.0), (1.0, 0.0))
    along = relations[layout.clamp(max=3)]
    across = along.flip(1).abs()
    pair = along[:, None] * constants(0.24, -0.24, 0.0, 0.0)[:, None]
    pair = pair + across[:, None] * jitter(MAX_OBJECTS, 1) * 0.06 + jitter(1, 2) * 0.015
    direction = constants((1.0, 0.0), (0.0, 1.0))[layout.clamp(max=1)]
    spacing = constants(0.38, 0.29, 0.225)[count]
    steps = slot.float() - (count[:, None].float() + 1) / 2
    row = direction[:, None] * (steps * spacing[:, None])[..., None]
    row = row + direction.flip(1)[:, None] * jitter(1, 1) * 0.10 + jitter(1, 2) * 0.015
    center = torch.where((kind == SINGLE)[:, None, None], single.expand(-1, MAX_OBJECTS, -1), pair)
    center = torch.where((kind == ROW)[:, None, None], row, center)

    radius = torch.where(
        (kind == SINGLE)[:, None], constants(0.15, 0.29)[sizes], constants(0.115, 0.205)[sizes]
    )
    line_radius = constants(0.165, 0.125, 0.097)[count]
    radius = torch.where((kind == ROW)[:, None], line_radius[:, None], radius)
    radius = radius * (1 + 0.06 * jitter(1))
    objects = torch.where(kind == ROW, count + 2, torch.where(kind == PAIR, 2, 1))
    radius = torch.where(slot < objects[:, None], radius, 0.0)

    in_row = kind == ROW
    second = (slot[None] >= 1) & ~in_row[:, None]
    shape = torch.where(second, scenes[:, SHAPE_2, None], scenes[:, SHAPE_1, None])
    color = torch.where(second, scenes[:, COLOR_2, None], scenes[:, COLOR_1, None])
    return Geometry(
        shape=shape,
        color=constants(*COLORS.values())[color],
        center=(center + 0.5) * IMAGE_SIZE,
        radius=radius * IMAGE_SIZE,
        background=constants(*BACKGROUNDS.values())[scenes[:, BACKGROUND]],
    )


def _polygon_distance(points: Tensor, vertices: Tensor) -> Tensor:
    """Return the distance from points `[..., 2]` to a simple polygon `[v, 2]`, negative inside."""
    nearest = torch.full(points.shape[:-1], float("inf"))
    crossings = torch.zeros(points.shape[:-1], dtype=torch.int64)
    for start, end in zip(vertices, vertices.roll(-1, 0), strict=True):
        edge, relative = end - start, points - start
        along = ((relative * edge).sum(-1) / (edge * edge).sum()).clamp(0, 1)
        nearest = torch.minimum(nearest, (relative - along[..., None] * edge).norm(dim=-1))
        straddles = (start[1] > points[..., 1]) != (end[1] > points[..., 1])
        x = start[0] + (points[..., 1] - start[1]) * edge[0] / torch.where(
            edge[1] == 0, torch.tensor(1.0), edge[1]
        )
        crossings += (straddles & (points[..., 0] < x)).long()
    return torch.where(crossings % 2 == 1, -nearest, nearest)


def _regular(radii: tuple[float, ...], points: int) -> list[tuple[float, float]]:
    angles = [math.tau * index / points - math.pi / 2 for index in range(points)]
    return [
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


_ATLAS_SIZE = 256
_ATLAS_EXTENT = 1.5


@functools.lru_cache(maxsize=4)
def _shape_atlas(device: torch.device) -> Tensor:
    """Return the signed distances of all shapes of radius 1 on a fine grid, `[1, 1, shapes, y, x]`.

    Looking distances up costs one `grid_sample` for any mixture of shapes, where evaluating the
    formulas would compute all eight for every object.
    """
    # The sampled points include both ends of the axis, to match grid_sample's align_corners.
    axis = torch.linspace(-_ATLAS_EXTENT, _ATLAS_EXTENT, _ATLAS_SIZE)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    length = points.norm(dim=-1)
    turns = [math.tau * index / 96 for index in range(96)]
    heart = [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16
            - 0.12,
        )
        for t in turns
    ]
    arm, width = 0.98, 0.32
    cross = [(width, -arm), (width, -width), (arm, -width), (arm, width), (width, width)]
    cross += [(width, arm), (-width, arm), (-width, width), (-arm, width), (-arm, -width)]
    cross += [(-width, -width), (-width, -arm)]
    polygons = {
        "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
        "triangle": [(x, y + 0.15) for x, y in _regular((1.1,), 3)],
        "star": [(x, y + 0.05) for x, y in _regular((1.1, 0.46), 10)],
        "heart": heart,
        "diamond": [(0.0, -1.1), (0.72, 0.0), (0.0, 1.1), (-0.72, 0.0)],
        "cross": cross,
    }
    fields = {"circle": length - 0.93, "ring": (length - 0.76).abs() - 0.22}
    for name, vertices in polygons.items():
        fields[name] = _polygon_distance(points, torch.tensor(vertices))
    return torch.stack([fields[name] for name in SHAPES])[None, None].to(device)


def draw(geometry: Geometry) -> Tensor:
    """Draw scenes, anti-aliased: an edge is a ramp 1.5 pixels wide.

    Args:
        geometry: From `place_objects`.

    Returns:
        float32 `[n, 3, IMAGE_SIZE, IMAGE_SIZE]` in [-1, 1].
    """
    n, device = len(geometry.shape), geometry.shape.device
    atlas = _shape_atlas(device)
    pixel = torch.arange(IMAGE_SIZE, device=device) + 0.5
    image = geometry.background[:, :, None, None].expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE)
    for slot in range(MAX_OBJECTS):
        radius = geometry.radius[:, slot, None]
        present = (radius > 0).float()
        scale = radius.clamp(min=1.0) * _ATLAS_EXTENT
        x = (pixel - geometry.center[:, slot, :1]) / scale
        y = (pixel - geometry.center[:, slot, 1:]) / scale
        depth = geometry.shape[:, slot, None, None] * (2 / (len(SHAPES) - 1)) - 1
        size = (n, IMAGE_SIZE, IMAGE_SIZE)
        grid = torch.stack(
            [x[:, None, :].expand(size), y[:, :, None].expand(size), depth.expand(size)], -1
        )
        distance = F.grid_sample(
            atlas, grid[None], mode="bilinear", padding_mode="border", align_corners=True
        )[0, 0]
        coverage = (0.5 - distance * radius[..., None] / 1.5).clamp(0, 1)
        coverage = coverage * coverage * (3 - 2 * coverage) * present[..., None]
        color = geometry.color[:, slot, :, None, None]
        image = torch.lerp(image, color.expand_as(image), coverage[:, None])
    return image * 2 - 1


def draw_scenes(scenes: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Place and draw scenes; see `place_objects` and `draw`."""
    return draw(place_objects(scenes, generator))
