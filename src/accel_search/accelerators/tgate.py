"""T-GATE: stop computing cross-attention at a gate step, and self-attention in most others."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from accel_search.accelerators.base import (
    ALONE,
    Accelerator,
    Context,
    Effect,
    Parameter,
    StepType,
)
from accel_search.accelerators.patching import Layer, attention_modules, layered
from accel_search.errors import AcceleratorError

if TYPE_CHECKING:
    from accel_search.accelerators.clock import StepClock
    from accel_search.accelerators.pipeline_call import PipelineCall
    from accel_search.core.candidate import Params
    from accel_search.core.workload import Workload

COMPUTE, STORE, REUSE = 0, 1, 2
"""What an attention does in a step: compute; compute and keep the value; return the kept one."""


class StepMode(NamedTuple):
    """What T-GATE does in one step."""

    self_attention: int
    """COMPUTE, STORE or REUSE."""
    cross_attention: int
    """COMPUTE, STORE or REUSE."""
    mean: bool
    """What is kept is the mean of the unconditional and the text half."""
    half: bool
    """The UNet runs on one half of the guidance batch, and its output is not guided."""


@lru_cache(maxsize=256)
def schedule(
    steps: int, gate_step: int, sp_interval: int, fi_interval: int, warmup: int
) -> tuple[StepMode, ...]:
    """Return what T-GATE does in each of `steps` UNet calls.

    Source:
        tgate 1.0.0, `tgate_utils.tgate_scheduler`, and `SD.py` for the batch.
    """
    modes = []
    for step in range(steps):
        if step < gate_step - 1:
            if step < warmup:
                own = COMPUTE
            else:
                own = STORE if step == warmup or step % sp_interval == 0 else REUSE
            modes.append(StepMode(own, COMPUTE, mean=False, half=False))
        elif step == gate_step - 1:
            modes.append(StepMode(STORE, STORE, mean=True, half=False))
        else:
            own = STORE if step % fi_interval == 0 else REUSE
            modes.append(StepMode(own, REUSE, mean=False, half=True))
    return tuple(modes)


class TGate(Accelerator):
    """Cache each attention's output and, from `gate_step` on, drop one half of the guidance batch.

    `gate_step` and the intervals count UNet calls. From `gate_step` on the UNet gets the first,
    unconditional half, and its output is handed back twice: then uncond + g × (text − uncond)
    is that output, whatever g, in every pipeline. Cross-attention returns what it kept at
    `gate_step` − 1, the mean over both halves, so that the text still acts. Without guidance
    nothing is halved nor averaged, and the rest holds.

    Source:
        Zhang et al., "Faster Diffusion via Temporal Attention Decomposition" (T-GATE),
        arXiv:2404.02747; tgate 1.0.0, `TgateSDLoader`, `TgateSDXLLoader`. Its loaders, too, go
        on with the unconditional half (`negative_prompt_embeds`, `negative_add_text_embeds`):
        for SD the halves only differ in the cross-attention that is reused, for SDXL also in
        the pooled prompt and the sizes. Deviations: works without guidance, where the package
        raises; steps count from the first UNet call, where the package subtracts
        `len(timesteps)` − steps × order (1 for PNDM, −1 for Heun, at which it leaves the modes of
        every other call unset); with `guidance_rescale`, the guidance's own formula is applied
        to equal halves, which rounds.
    """

    name = "tgate"
    parameters = (
        Parameter("gate_step", tuple(range(19, 4, -1)), 1, None, "first step without "
                  "cross-attention and guidance; smaller is faster"),
        Parameter("sp_interval", tuple(range(2, 10)), 1, None, "before the gate, compute "
                  "self-attention every n-th step; larger is faster"),
        Parameter("fi_interval", tuple(range(1, 6)), 1, None, "from the gate on, compute "
                  "self-attention every n-th step; larger is faster"),
        Parameter("warmup", (3, 2, 1), 0, None, "first step whose self-attention is kept; "
                  "smaller is faster"),
    )  # fmt: skip
    order = 30

    def note(self, workload: Workload) -> str:
        """Return what is left of it without guidance."""
        if workload.has_guidance:
            return ""
        return (
            f"halves no UNet call without guidance (guidance scale {workload.guidance_scale:g}): "
            "it reuses attention alone"
        )

    def allowed(self, parameter: Parameter, value: int | float, workload: Workload) -> bool:
        """Tell whether there are steps after the gate."""
        return parameter.name != "gate_step" or value < min(workload.steps, workload.unet_calls)

    def signature(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> Hashable | None:
        """Return what is computed in each step.

        Returns:
            For each UNet call the one whose self-attention it reuses (None: it computes its
            own), whether it reuses cross-attention, and whether it runs on half the batch.
            Where another accelerator skips modules, also the steps at which a value is kept: a
            module may then reuse one that is not of the latest such step.
        """
        kept: int | None = None
        steps = []
        modes = _schedule(workload.unet_calls, params)
        for index, mode in enumerate(modes):
            if mode.self_attention == STORE:
                kept = index
            source = kept if mode.self_attention == REUSE else None
            steps.append(
                (source, mode.cross_attention == REUSE, mode.half and workload.has_guidance)
            )
        if all(step == (None, False, False) for step in steps):
            return None
        if not context.skips_modules:
            return tuple(steps)
        return tuple(steps), tuple(mode.self_attention == STORE for mode in modes)

    def restarts(self, params: Params) -> frozenset[int]:
        """Return the steps at which every module has to run.

        In the last one before the gate each keeps its mean; in the first one of the gate each
        sees the new batch.
        """
        return frozenset({int(params["gate_step"]) - 1, int(params["gate_step"])})

    def step_types(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> tuple[StepType, ...]:
        """Return what is reused in each step; keeping a value costs next to nothing.

        A module that another accelerator left out whenever a value was kept has none: it computes,
        so that such a step reuses only in part.
        """
        types = []
        everywhere = False
        for call, mode in enumerate(_schedule(workload.unet_calls, params)):
            reused = mode.self_attention == REUSE
            # In a call that leaves modules out, those that run have run in every call.
            in_part = reused and not everywhere and call not in context.skipped
            everywhere |= mode.self_attention == STORE and call not in context.skipped
            effects = {
                "self-attention reused": reused and not in_part,
                "self-attention reused in part": in_part,
                "mean kept": mode.mean and workload.has_guidance,
                "gated": mode.cross_attention == REUSE,
            }
            types.append(frozenset(Effect(name) for name, done in effects.items() if done))
        return tuple(types)

    def apply(self, pipe: Any, params: Params, clock: StepClock) -> AbstractContextManager[Any]:
        """Put a layer on every attention, and on the UNet's batch; see `Accelerator.apply`.

        Raises:
            AcceleratorError: An attention has a residual connection or added keys and values.
        """
        state = _State()
        attentions = attention_modules(pipe.unet)
        layers = [_CachingLayer(state) for _ in attentions]

        def on_begin() -> None:
            state.modes = _schedule(clock.total, params)

        def on_step() -> None:
            # Asked at each step, since a callback may end guidance in the middle of a call.
            state.set(clock.index, is_guided_in_halves(clock.call, clock.batch))

        def on_end() -> None:
            state.rest()
            for layer in layers:
                layer.value = None

        with ExitStack() as stack:
            for attention, layer in zip(attentions, layers, strict=True):
                stack.enter_context(layered(attention, layer))
            stack.enter_context(layered(pipe.unet, _HalvingLayer(state)))
            restarts = self.restarts(params)
            stack.enter_context(clock.subscribe(on_begin, on_step, on_end, restarts))
            return stack.pop_all()


def _schedule(steps: int, params: Params) -> tuple[StepMode, ...]:
    return schedule(
        steps,
        int(params["gate_step"]),
        int(params["sp_interval"]),
        int(params["fi_interval"]),
        int(params["warmup"]),
    )


def is_guided_in_halves(call: PipelineCall | None, batch: int) -> bool:
    """Return whether the UNet's batch is [unconditional, text]; False without guidance.

    Args:
        call: The pipeline call, as of now.
        batch: Rows of the UNet's input.

    Raises:
        AcceleratorError: The batch is made of other parts, or what it is made of is not known.
    """
    way_out = "leave tgate out there"
    if call is None:
        raise AcceleratorError(
            "tgate: the UNet is called outside of a pipeline call, so how its batch is guided "
            f"cannot be determined: call the pipeline, or {way_out}"
        )
    guided = call.is_guided
    if guided is None or call.images is None:
        raise AcceleratorError(
            f"tgate: {call.name} does not say whether it guides, or how many pictures it makes: "
            f"{way_out}"
        )
    if guided and call.guess_mode:
        raise AcceleratorError(
            "tgate: under guess mode ControlNet acts on one half of the batch alone, so that one "
            f"half cannot stand for both: call with guess_mode=False, or {way_out}"
        )
    if batch != call.images * (1 + guided):
        parts = "[unconditional, text] is" if guided else "one part is"
        raise AcceleratorError(
            f"tgate: {call.name} gives the UNet a batch of {batch} for {call.images} pictures "
            f"{'with' if guided else 'without'} guidance, where {parts} expected (PAG and "
            f"InstructPix2Pix have others): {way_out}"
        )
    return guided


def check_halves(batch: int, arguments: Mapping[str, Any]) -> None:
    """Raise AcceleratorError where the halves of a guided batch differ in more than the text.

    Args:
        batch: Rows of the UNet's input.
        arguments: Of the UNet's call, by name. What a ControlNet adds differs by the text alone,
            as do SDXL's pooled prompt and sizes.
    """
    others = ["gligen"] if "gligen" in (arguments.get("cross_attention_kwargs") or {}) else []
    for name in ("class_labels", "timestep_cond"):
        value: Any = arguments.get(name)
        has_rows = getattr(value, "shape", (0,))[:1] == (batch,)
        # Waits for the device, once in a pipeline call.
        if has_rows and not bool((value[: batch // 2] == value[batch // 2 :]).all()):
            others.append(name)
    if others:
        raise AcceleratorError(
            f"tgate: the two halves of the guidance differ in more than the text ({others[0]}), so "
            "that one cannot stand for both: leave tgate out there"
        )


class _State:
    """What the layers of one application share; set before every UNet call."""

    def __init__(self) -> None:
        self.modes: tuple[StepMode, ...] = ()
        self.rest()

    def rest(self) -> None:
        """Do nothing, until the next pipeline call."""
        self.self_attention = self.cross_attention = COMPUTE
        self.mean = self.half = self.is_checked = False

    def set(self, step: int, guided: bool) -> None:
        """Do what the schedule has for a step."""
        mode = self.modes[step]
        self.self_attention = mode.self_attention
        self.cross_attention = mode.cross_attention
        self.mean = mode.mean and guided
        self.half = mode.half and guided


class _CachingLayer(Layer):
    """Runs an attention, or returns what it returned in an earlier step."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self.value: Any = None

    def run(self, attn: Any, /, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        state, kept = self.state, self.value
        text = args[0] if args else kwargs.get("encoder_hidden_states")
        mode = state.self_attention if text is None else state.cross_attention
        # No value yet where DeepCache skipped this module in the step that kept one, and none for
        # these rows where guidance has ended since: compute.
        if mode == REUSE and kept is not None and kept.shape[:2] == hidden_states.shape[:2]:
            return kept
        output = self.inner(attn, hidden_states, *args, **kwargs)
        if mode == STORE:
            if state.mean:
                uncond, conditional = output.chunk(2)
                self.value = (uncond + conditional) / 2
            else:
                self.value = output
        return output


class _HalvingLayer(Layer):
    """Runs the UNet on the first half of its batch, and returns its output twice."""

    def __init__(self, state: _State) -> None:
        self.state = state

    def run(self, unet: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not self.state.half:
            return self.inner(unet, *args, **kwargs)

        import torch

        batch = (args[0] if args else kwargs["sample"]).shape[0]
        if not self.state.is_checked:
            check_halves(batch, kwargs)
            self.state.is_checked = True
        output = self.inner(
            unet,
            *(_first_half(value, batch) for value in args),
            **{name: _first_half(value, batch) for name, value in kwargs.items()},
        )
        if isinstance(output, tuple):
            return (torch.cat([output[0], output[0]]), *output[1:])
        return type(output)(sample=torch.cat([output.sample, output.sample]))


def _first_half(value: Any, batch: int) -> Any:
    """Return the first half of each tensor in `value` that has `batch` rows."""
    if isinstance(value, dict):
        return {key: _first_half(item, batch) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_first_half(item, batch) for item in value)
    shape = getattr(value, "shape", None)
    return value[: batch // 2] if shape and shape[0] == batch else value
