"""A worker process that measures nothing: it does what `FAKE_PLAN` says of each configuration.

FAKE_PLAN is JSON, e.g. {"demo_DDIM_20_tome": "crash"}; what it does not name is done at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from accel_search.settings import Settings
from accel_search.storage.entries import BoundEvidence, StoredProvenance
from accel_search.storage.keys import search_key
from accel_search.sweep.answer import Answer, failure
from accel_search.sweep.worker import _jobs, settings_of
from tests.support.entries import bound_entry
from tests.support.fakes import PROVENANCE, with_steps

PLAN = json.loads(os.environ.get("FAKE_PLAN", "{}"))


def entry(settings: Settings):
    """Return an entry whose study names the process and the GPU that it saw."""
    from accel_search.storage import speedup_bounds

    study = f"{os.getpid()} {os.environ.get('GPU_SEEN')}"
    return bound_entry(
        settings.pipe,
        latency_only=settings.latency_only,
        asked=speedup_bounds.asked(settings),
        evidence=BoundEvidence(seconds=1.0, study=study),
        provenance=StoredProvenance(**PROVENANCE.as_dict()),
    )


def answer(job):
    if job.get("probe"):
        where = PROVENANCE.as_dict()
        return Answer(machine={name: where[name] for name in ("device_name", "driver", "versions")})
    settings = settings_of(job["options"])
    name = f"{settings.pipe}_{settings.sched}_{settings.steps}_{'+'.join(settings.targets)}"
    what, _, detail = PLAN.get(name, PLAN.get(settings.pipe, "done")).partition(" ")
    print(f"measuring {name} in {os.getpid()}")
    print("WARNING: it is only a fake")
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "hang":
        # With a child of its own, in another group, and deaf to polite requests.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
        )
        print(f"child {child.pid}", flush=True)
        threading.Event().wait(600)
    elif what == "sleep":
        time.sleep(float(detail))
    elif what == "wait":  # Until there is a file of that name.
        deadline = time.monotonic() + 120
        while not Path(detail).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    elif what == "exit":  # As a library may end its process.
        sys.stdout.flush()
        os._exit(int(detail))
    elif what == "hung" and job["carried"][0] < int(detail):
        return Answer(carried=(job["carried"][0] + 1, 0.0))
    elif what == "oom":
        facts = {"batch_sizes_tried": (4, 2, 1), "bytes_asked": 8, "bytes_free": 4}
        return Answer(failure=failure("cuda_oom", "does not fit", seconds=1, exit_code=4, **facts))
    elif what == "load":
        broken = failure("model_load", "no such folder", seconds=1, exit_code=5)
        return Answer(failure=broken, is_of_model=True)
    workload = with_steps(settings.steps)
    key = search_key(workload, "upbound_speedup", settings.req_score_loss, settings.targets)
    key = key.replace("DDIMScheduler", settings.scheduler_class)
    if settings.pipe == "SDXL":
        key = key.replace("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    label = settings.pipe + (" (latency only)" if settings.latency_only else "")
    return Answer(key=key, label=label, entry=entry(settings))


def main():
    from accel_search.storage.json_files import write_atomically

    for job in _jobs():
        found = answer(job)
        sys.stdout.flush()
        write_atomically(Path(job["answer"]), json.dumps(found.as_dict()))


if __name__ == "__main__":
    main()
