"""ToMe: merge alike tokens before self-attention and un-merge them after."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from accel_search.accelerators.base import (
    ALONE,
    Accelerator,
    Context,
    Effect,
    Parameter,
    StepType,
)
from accel_search.accelerators.patching import Layer, layered, transformers
from accel_search.errors import AcceleratorError

if TYPE_CHECKING:
    from accel_search.accelerators.clock import StepClock
    from accel_search.core.candidate import Params
    from accel_search.core.workload import Workload

SEED = 0
"""Seeds the choice of destination tokens at the begin of every pipeline call."""

# Stride of the cells out of which one token each is a destination: tomesd's default.
STRIDE = 2

FUSED_KERNELS = ("flash", "efficient", "cudnn")
"""Attention kernels that take memory and time of no N × N matrix."""


class ToMe(Accelerator):
    """Merge `ratio` of the tokens of each self-attention at most `max_downsample` deep.

    The destination tokens are drawn from a generator on the device that starts from `SEED` at
    every pipeline call, and tokens are added up in a fixed order: the same seeds give the same
    images each time, on CUDA too.

    Source:
        Bolya & Hoffman, "Token Merging for Fast Stable Diffusion", CVPR-W 2023; tomesd 0.1.3,
        `patch.py` (what is merged, and on what measure) and `merge.py` (the matching).
        Deviations: the generator is seeded per call (tomesd's lives on, so its second image
        from the same seed differs); on CUDA destinations gather their tokens by a matrix
        product, since tomesd's `scatter_reduce` adds in no fixed order there; odd batches keep
        random destinations (tomesd switches them off, though all images of a batch share them),
        so that an image does not depend on the batch it was made in; destinations are drawn
        before the transformer blocks that share a grid run, in the order in which tomesd draws
        them, so that a block can be compiled; the matching is not computed where T-GATE reuses
        the attention; nothing is merged where tomesd misjudges the
        token grid (9 × 13 latents at factor 4), for which it raises.
    """

    name = "tome"
    parameters = (
        Parameter("ratio", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.0, 1.0,
                  "share of the tokens merged, at most 0.75; larger is faster"),
        Parameter("max_downsample", (1, 2, 3, 4), 1, 8, "deepest downsampling factor at which "
                  "tokens are merged; smaller is milder, and often faster"),
    )  # fmt: skip
    # Below DeepCache: a transformer that it skips draws nothing.
    order = 5

    def why_no_gain(self, attention: str | None) -> str:
        """Return what merging has to win back, and whether the kernel in use leaves it much."""
        kernel = (attention or "").partition("(")[2].rstrip(")")
        if kernel in FUSED_KERNELS:
            return (
                "matching tokens takes time of its own, and the attention kernel in use, "
                f"{kernel}, never stores attention's matrix, so that fewer tokens save it little; "
                "merging pays where attention is slow: large pictures, or a GPU or dtype without "
                "such a kernel"
            )
        by = f" by {kernel or attention}" if attention not in (None, "native") else ""
        return (
            f"matching tokens takes time of its own, more than attention{by} saves on fewer "
            "tokens; merging pays where attention is slow: large pictures above all"
        )

    def signature(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> Hashable | None:
        """Return the tokens merged at each level; None when that is none everywhere."""
        merged = tuple(merged for _, _, merged in _levels(params, workload))
        return merged if any(merged) else None

    def step_types(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> tuple[StepType, ...]:
        """Return the share of tokens merged at each level, the same in every call."""
        effects = frozenset(
            Effect(f"merged at 1/{factor}", merged / tokens)
            for factor, tokens, merged in _levels(params, workload)
            if merged
        )
        return (effects,) * workload.unet_calls

    def apply(self, pipe: Any, params: Params, clock: StepClock) -> AbstractContextManager[Any]:
        """Put layers on all self-attentions and on what draws for them; see `Accelerator.apply`."""
        state = _State(float(params["ratio"]), int(params["max_downsample"]))

        def on_begin() -> None:
            state.latent_size = clock.latent_size

        with ExitStack() as stack:
            for transformer in transformers(pipe.unet):
                merging = []
                for block in transformer.transformer_blocks:
                    merging.append(_MergingLayer(state))
                    stack.enter_context(layered(block.attn1, merging[-1]))
                    stack.enter_context(layered(block, _CapturingLayer(state)))
                stack.enter_context(layered(transformer, _DrawingLayer(state, merging)))
            stack.enter_context(clock.subscribe(on_begin=on_begin, on_end=state.drop))
            return stack.pop_all()


def _levels(params: Params, workload: Workload) -> Iterator[tuple[int, int, int]]:
    """Yield for each level with attention its downsampling factor, its tokens and those merged."""
    for factor in workload.attention_downsamples:
        tokens = tokens_of(workload, factor)
        plan = merge_plan(
            (workload.latent_height, workload.latent_width),
            tokens,
            float(params["ratio"]),
            int(params["max_downsample"]),
        )
        yield factor, tokens, 0 if plan is None else plan[2]


def tokens_of(workload: Workload, factor: int) -> int:
    """Return the tokens at a downsampling factor; a stride-2 convolution rounds up."""
    return math.ceil(workload.latent_height / factor) * math.ceil(workload.latent_width / factor)


def merge_plan(
    latent_size: tuple[int, int], tokens: int, ratio: float, max_downsample: int
) -> tuple[int, int, int] | None:
    """Return how `tokens` tokens of a latent are merged, with tomesd's own arithmetic.

    Args:
        latent_size: Height and width of the UNet's input.
        tokens: Tokens of the attention in question.
        ratio: Share of the tokens to merge.
        max_downsample: Deepest downsampling factor at which tokens are merged.

    Returns:
        Width and height of the token grid and the number of tokens merged; None if none is.

    Source:
        tomesd 0.1.3, `patch.compute_merge` and `merge.bipartite_soft_matching_random2d`.
    """
    height, width = latent_size
    downsample = math.ceil(math.sqrt(height * width // tokens))
    if downsample > max_downsample:
        return None
    w, h = math.ceil(width / downsample), math.ceil(height / downsample)
    if w * h != tokens:
        return None
    destinations = (h // STRIDE) * (w // STRIDE)
    merged = min(int(tokens * ratio), tokens - destinations)
    # Without a destination (a grid one token wide) there is nothing to merge into.
    return (w, h, merged) if merged > 0 and destinations > 0 else None


class _State:
    """What the layers of one application share."""

    def __init__(self, ratio: float, max_downsample: int) -> None:
        self.ratio = ratio
        self.max_downsample = max_downsample
        self.drop()

    def drop(self) -> None:
        """Merge nothing until the next pipeline call, and hold no tensor."""
        # The input [B, N, C] of the transformer block that runs. One slot for all blocks: a
        # block's self-attention takes it, and where T-GATE leaves it, the next one overwrites it.
        self.block_input: Any = None
        self.generator: Any = None
        self.latent_size: tuple[int, int] | None = None

    def plan(self, tokens: int) -> tuple[int, int, int] | None:
        if self.latent_size is None:
            return None
        return merge_plan(self.latent_size, tokens, self.ratio, self.max_downsample)

    def draw(self, plan: tuple[int, int, int], device: Any) -> Any:
        import torch

        if self.generator is None:
            self.generator = torch.Generator(device).manual_seed(SEED)
        return draw_destinations(plan[0], plan[1], self.generator)


class _MergingLayer(Layer):
    """Runs a self-attention on merged tokens and returns its un-merged output."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self.plan: tuple[int, int, int] | None = None
        self.destinations: Any = None

    def run(self, attn: Any, /, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        state = self.state
        metric, state.block_input = state.block_input, None
        if self.plan is None:
            return self.inner(attn, hidden_states, *args, **kwargs)
        if metric is None or metric.shape[1] != hidden_states.shape[1]:
            raise AcceleratorError(
                "tome: the tokens that a self-attention gets are not those of its block: another "
                "patch (tomesd?) has merged them already; take one of the two off"
            )
        matching = Matching(metric, *self.plan, self.destinations)
        merged = matching.merge(hidden_states)
        return matching.unmerge(self.inner(attn, merged, *args, **kwargs))


class _CapturingLayer(Layer):
    """Hands a transformer block's input on to its self-attention."""

    def __init__(self, state: _State) -> None:
        self.state = state

    def run(self, block: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.state.block_input = args[0] if args else kwargs["hidden_states"]
        return self.inner(block, *args, **kwargs)


class _DrawingLayer(Layer):
    """Draws for the blocks of a transformer before they run."""

    def __init__(self, state: _State, merging: list[_MergingLayer]) -> None:
        self.state = state
        self.merging = merging

    def run(self, transformer: Any, /, *args: Any, **kwargs: Any) -> Any:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        plan = self.state.plan(hidden_states.shape[-2] * hidden_states.shape[-1])
        if plan is None:
            return self.inner(transformer, *args, **kwargs)
        for layer in self.merging:
            layer.plan = plan
            layer.destinations = self.state.draw(plan, hidden_states.device)
        try:
            return self.inner(transformer, *args, **kwargs)
        finally:
            for layer in self.merging:
                layer.plan = layer.destinations = None


def draw_destinations(width: int, height: int, generator: Any) -> Any:
    """Return the number of the token, within each cell of `STRIDE` × `STRIDE`, that is drawn.

    Args:
        width: Tokens in a row of the grid.
        height: Rows of the grid.
        generator: On the device of the result.

    Returns:
        `[height / STRIDE, width / STRIDE, 1]`, int64, the same for all images of a batch.
    """
    import torch

    shape = (height // STRIDE, width // STRIDE, 1)
    return torch.randint(STRIDE * STRIDE, shape, device=generator.device, generator=generator)


class Matching:
    """Which tokens are merged into which.

    One random token of each cell of `STRIDE` × `STRIDE` is a destination. Of the others, the
    `merged` that are most alike to a destination are merged into it.

    Args:
        metric: `[B, N, C]`; tokens are alike where its cosine similarity is high.
        width: Tokens in a row of the grid.
        height: Rows of the grid.
        merged: Tokens to merge.
        chosen: The destination of each cell, from `draw_destinations`.

    Source:
        tomesd 0.1.3, `merge.bipartite_soft_matching_random2d`: the same operations in the same
        order on the CPU, so that the images are equal bit for bit; on CUDA see `merge`.
    """

    def __init__(self, metric: Any, width: int, height: int, merged: int, chosen: Any) -> None:
        import torch

        rows, columns, _ = chosen.shape
        device = metric.device
        cells = torch.zeros(rows, columns, STRIDE * STRIDE, dtype=torch.int64, device=device)
        cells.scatter_(2, chosen, -1)
        cells = cells.view(rows, columns, STRIDE, STRIDE).transpose(1, 2)
        grid = torch.zeros(height, width, dtype=torch.int64, device=device)
        grid[: rows * STRIDE, : columns * STRIDE] = cells.reshape(rows * STRIDE, columns * STRIDE)
        # Destinations are −1 and come first.
        order = grid.view(-1).argsort()
        self._destinations, others = order[: rows * columns], order[rows * columns :]

        unit = metric / metric.norm(dim=-1, keepdim=True)
        similarity = unit[:, others] @ unit[:, self._destinations].transpose(-1, -2)
        best, nearest = similarity.max(dim=-1)
        ranked = best.argsort(dim=-1, descending=True)
        merging, staying = ranked[:, :merged], ranked[:, merged:]
        self._target = nearest.gather(1, merging)
        """Position among the destinations that each merged token goes to, `[B, merged]`."""
        self._merged, self._kept = others[merging], others[staying]
        """Token indices of those that are merged and those that stay, `[B, …]`."""

    def merge(self, tokens: Any) -> Any:
        """Return `[B, N − merged, C]`: tokens that stay, then the mean of each destination.

        On the CPU `scatter_reduce` adds token by token, in order. On CUDA its atomic additions
        come in any order, so there a product with a matrix of ones and zeros adds, which is no
        larger than the matching's own matrix and rounds once where half precision would at
        every addition.
        """
        import torch

        kept, own = _rows(tokens, self._kept), tokens[:, self._destinations]
        moving = _rows(tokens, self._merged)
        mean = mean_by_product if tokens.is_cuda else mean_in_order
        return torch.cat([kept, mean(own, moving, self._target)], dim=1)

    def unmerge(self, tokens: Any) -> Any:
        """Return `[B, N, C]`: every merged token gets the value of its destination."""
        batch, _, channels = tokens.shape
        kept, own = tokens.split([self._kept.shape[1], len(self._destinations)], dim=1)
        result = tokens.new_empty(
            batch, self._kept.shape[1] + self._merged.shape[1] + own.shape[1], channels
        )
        result[:, self._destinations] = own
        for index, rows in ((self._kept, kept), (self._merged, _rows(own, self._target))):
            result.scatter_(1, index[..., None].expand_as(rows), rows)
        return result


def mean_in_order(own: Any, moving: Any, target: Any) -> Any:
    """Return the mean of each destination and of what is merged into it, `[B, D, C]`.

    Args:
        own: Destinations, `[B, D, C]`.
        moving: Tokens that are merged into them, `[B, M, C]`.
        target: Destination of each, `[B, M]`.
    """
    return own.scatter_reduce(1, target[..., None].expand_as(moving), moving, reduce="mean")


def mean_by_product(own: Any, moving: Any, target: Any) -> Any:
    """Return the same as `mean_in_order`, to rounding, in an order that never changes."""
    import torch

    number = torch.arange(own.shape[1], device=own.device)
    takes = target[:, None, :] == number[:, None]
    count = takes.sum(dim=-1, keepdim=True) + 1
    return (torch.baddbmm(own, takes.to(own.dtype), moving) / count).to(own.dtype)


def _rows(tokens: Any, index: Any) -> Any:
    """Return of `[B, N, C]` the rows that `index` `[B, M]` names for each of the batch."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
