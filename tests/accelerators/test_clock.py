"""The clock knows when a pipeline call begins, steps and ends, whatever the pipeline does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accel_search.accelerators.clock import StepClock
from tests.support.tiny import inputs, make_img2img, make_pipe, render


def watch(clock: StepClock, events: list[Any], restarts: tuple[int, ...] = ()) -> Any:
    return clock.subscribe(
        on_begin=lambda: events.append(("begin", clock.total)),
        on_step=lambda: events.append((clock.index, clock.phase_start)),
        on_end=lambda: events.append("end"),
        restarts=restarts,
    )


def test_every_call_begins_steps_and_ends(sd: Any) -> None:
    clock, events = StepClock(), list[Any]()
    with watch(clock, events, restarts=(2, 3)), clock.install(sd):
        for steps in (4, 2):
            render(sd, (0,), steps=steps)
            expected = [(0, 0), (1, 0), (2, 2), (3, 3)][:steps]
            assert events == [("begin", steps), *expected, "end"]
            events.clear()
        assert clock.latent_size == (16, 16)
    assert events == ["end"]  # On leaving, in any case.


def test_image_to_image_ends_with_its_last_unet_call() -> None:
    """Else what is cached would be held until the next call."""
    pipe = make_img2img()
    arguments = inputs("SD", (0,))
    image = arguments.pop("latents").new_zeros(1, 3, 32, 32)
    clock, events = StepClock(), list[Any]()
    with watch(clock, events), clock.install(pipe):
        pipe(image=image, strength=0.5, num_inference_steps=6, output_type="latent", **arguments)
        assert len(pipe.scheduler.timesteps) == 6
        assert events == [("begin", 3), (0, 0), (1, 0), (2, 0), "end"]


def test_a_unet_call_that_raises_ends_the_call(sd: Any) -> None:
    clock, events = StepClock(), list[Any]()

    def interrupt(*_: Any) -> None:
        if clock.index == 1:
            raise KeyboardInterrupt

    handle = sd.unet.conv_in.register_forward_pre_hook(interrupt)
    with watch(clock, events), clock.install(sd):
        with pytest.raises(KeyboardInterrupt):
            render(sd, (0,), steps=3)
        handle.remove()
        assert events == [("begin", 3), (0, 0), (1, 0), "end"]
        events.clear()
        render(sd, (0,), steps=1)
        assert events == [("begin", 1), (0, 0), "end"]


def test_a_callback_that_raises_between_two_unet_calls_ends_the_call(sd: Any) -> None:
    clock, events = StepClock(), list[Any]()

    def interrupt(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with watch(clock, events), clock.install(sd):
        with pytest.raises(KeyboardInterrupt):
            render(sd, (0,), steps=3, callback_on_step_end=interrupt)
        assert events == [("begin", 3), (0, 0), "end"]


def test_custom_timesteps_still_pass() -> None:
    """diffusers asks `set_timesteps` for its signature before it hands them on."""
    pipe = make_pipe(scheduler="DPMSolverMultistepScheduler")
    timesteps = [900, 600, 300]
    expected = render(pipe, (0,), steps=3, timesteps=timesteps)
    with StepClock().install(pipe):
        assert torch.equal(render(pipe, (0,), steps=3, timesteps=timesteps), expected)


def test_nothing_waits_for_the_device(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`item()` and `tolist()` on a device tensor block until all work before them is done."""
    from accel_search.accelerators.compose import apply_candidate
    from tests.support.tiny import tgate_params

    def calls() -> int:
        count = 0

        def counting(original: Any) -> Any:
            def method(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                return original(*args, **kwargs)

            return method

        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__index__"):
                patch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
            render(sd, (0,), steps=6)
        return count

    plain = calls()
    candidate = {
        "deepcache": {"cache_interval": 3, "cache_branch_id": 0},
        "tgate": tgate_params(5, 3, 2, 1),
        "tome": {"ratio": 0.5, "max_downsample": 4},
    }
    with apply_candidate(sd, candidate):
        assert calls() <= plain
