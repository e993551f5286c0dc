"""Run scripts made of printed lines, each in a process of its own, and watch their pipelines.

`python run_printed.py SCRIPT …` runs each in its own folder, where its `stdout`, `stderr` and exit
`code` are written to. The processes are forked once torch and diffusers are loaded, which takes
longer than all the rest; what a script makes lives until its process ends, as in any script.

A script says `pipe = start(kind)` before the lines as they are printed, and `finish(pipe, …)` after
them, which adds to `seen.jsonl` what the lines did.
"""

import functools
import gc
import json
import os
import sys
import types
from pathlib import Path

import diffusers
import numpy as np
import torch

import accel_search.accelerators.compose  # noqa: F401 - loaded once for all
from accel_search import api
from accel_search.runtime.loading.random_weights import build_random

STOCK = {
    "SD1.5": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "SDXL": (diffusers.EulerDiscreteScheduler, {}),
}
"""The schedulers that they come with, and options of those."""
APPLIED = []
"""Settings and scheduler of each application so far."""
CALLS = []
"""What is known of each pipeline call so far."""


def start(kind):
    """Return what the lines call `pipe`: tiny, with the scheduler that a stock one comes with."""
    APPLIED.clear()
    CALLS.clear()
    torch.manual_seed(0)
    pipe = build_random(kind, torch.device("cpu"), torch.float32, is_tiny=True)
    scheduler_class, options = STOCK[kind]
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **options)
    pipe.default_sample_size = 8  # Pictures of 64 pixels where the lines give no size.
    return pipe


def finish(pipe, where, stays):
    """Note what the lines did, beside what they should have done.

    Args:
        pipe: As the lines have left it.
        where: They are printed.
        stays: Whether they leave it accelerated.
    """
    pipe("a red ring", num_inference_steps=6, height=64, width=64)
    *calls, last = CALLS
    applied = APPLIED.copy()
    api.restore(pipe)
    bare = again(pipe, last)
    note = {
        "where": where,
        "applied": [settings for settings, _ in applied],
        "is_bare_at_end": is_same(last, bare),
        "calls": [judged(pipe, call, again(pipe, call)) for call in calls],
    }
    if stays:
        note["calls"].append(judged(pipe, last, bare))
    with Path("seen.jsonl").open("a") as file:
        file.write(json.dumps(note) + "\n")
    # The process ends as the lines have left it.
    settings, scheduler = applied[-1]
    api.accelerate(pipe, settings, scheduler=scheduler)


def judged(pipe, call, bare):
    """Compare a call with the same one bare, and with its settings applied by a kept handle."""
    settings, scheduler = call["applied"]
    handle = api.accelerate(pipe, settings, scheduler=scheduler)
    kept = again(pipe, call)
    handle.remove()
    return {
        "settings": settings,
        "unet": call["unet"],
        "full": call["full"],
        "full_bare": bare["full"],
        "full_kept": kept["full"],
        "is_as_bare": is_same(call, bare),
        "is_as_kept": is_same(call, kept),
    }


def again(pipe, call):
    """Make a call once more, from the same noise, and return what is known of it."""
    noise_of(call["options"]).set_state(call["noise"])
    pipe(*call["arguments"], **call["options"])
    return CALLS[-1]


def is_same(one, other):
    return all(map(np.array_equal, one["images"], other["images"]))


def noise_of(options):
    return options.get("generator", torch.default_generator)


def watch_calls(pipeline_class):
    """Note each call of pipelines of a class: how it was made, UNet calls, pictures."""
    original = pipeline_class.__call__

    @functools.wraps(original)
    def run(pipe, *arguments, **options):
        call = {"arguments": arguments, "options": options, "full": 0, "unet": 0}
        call |= {"noise": noise_of(options).get_state(), "applied": (APPLIED or [None])[-1]}

        def count(name):
            call[name] += 1

        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: count(name))
            for name, module in (("full", pipe.unet.mid_block.resnets[0]), ("unet", pipe.unet))
        ]
        pipe.set_progress_bar_config(disable=True)
        try:
            result = original(pipe, *arguments, **options)
        finally:
            for hook in hooks:
                hook.remove()
        call["images"] = [np.asarray(image) for image in result.images]
        CALLS.append(call)
        return result

    pipeline_class.__call__ = run


def watch_applications():
    """Note what is applied; nothing that is noted keeps it applied."""
    original = api.Acceleration.__init__

    @functools.wraps(original)
    def run(self, pipe, candidate, scheduler=None, implementation="own"):
        original(self, pipe, candidate, scheduler, implementation)
        APPLIED.append((candidate.as_dict(), scheduler))

    api.Acceleration.__init__ = run


def run_in_child(script):
    """Fork, and return the script's text in the child, and None in the parent once that ended."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        script.with_name("code").write_text(str(os.waitstatus_to_exitcode(status)))
        return None
    # Torch replaces its thread pool in a forked process at the next use, and two threads that load
    # weights may both find none there: replace it while there is one thread.
    torch.set_num_threads(torch.get_num_threads())
    os.chdir(script.parent)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    return compile(script.read_text(), script, "exec")


if __name__ == "__main__":
    torch.set_num_threads(1)
    start("SD1.5")("a red ring", num_inference_steps=2)  # So that children need not load more.
    watch_calls(diffusers.StableDiffusionPipeline)
    watch_calls(diffusers.StableDiffusionXLPipeline)
    watch_applications()
    gc.freeze()  # What is loaded is not gone through in each child.
    for path in sys.argv[1:]:
        code = run_in_child(Path(path))
        if code is not None:
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            vars(main).update(start=start, finish=finish)
            exec(code, vars(main))  # noqa: S102 - as Python runs a script
            break
    else:
        gc.unfreeze()
