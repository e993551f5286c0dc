"""What all stages share: where things are saved, and one training loop.

The models are small, so a training step is bound by launching kernels rather than by arithmetic.
On a GPU the loop therefore captures the whole step (data, forward, backward, optimiser) in a CUDA
graph, over networks that `torch.compile` has fused. Where one of the two fails, it says so and goes
on without it.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LOG_LINES = 12
WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Run:
    """Options shared by all stages.

    Attributes:
        out: The finished demo: `pipeline/`, `scorer/`, `prompts.txt`, `demo.json`, `README.md` and
            `training_figures.json`.
        work: What one stage leaves for the next.
        sheet: The picture of samples for the documentation.
        device: Where to train.
        steps: Number of steps instead of the stage's own.
        steps_scale: Multiplies every number of steps and of precomputed pictures.
        batch: Batch size instead of the stage's own.
        compile: Compile the networks.
    """

    out: Path
    work: Path
    sheet: Path
    device: torch.device
    steps: int | None = None
    steps_scale: float = 1.0
    batch: int | None = None
    compile: bool = False

    def step_count(self, planned: int) -> int:
        """Number of steps to run where the stage plans `planned`."""
        return self.steps or max(2, round(planned * self.steps_scale))

    @property
    def quick(self) -> bool:
        """Whether this only shows that the code works: what is measured means nothing."""
        return self.steps_scale < 0.01

    def batch_size(self, planned: int) -> int:
        """Batch size to use where the stage plans `planned`."""
        return self.batch or planned

    def pool_size(self, planned: int) -> int:
        """Number of pictures to precompute where the stage plans `planned`."""
        return max(8, round(planned * min(1.0, self.steps_scale)))

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Compute in bfloat16 on a GPU; weights stay float32.

        Casts of the weights are not cached: a cached one would be frozen into a captured graph.
        """
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.device.type == "cuda",
            cache_enabled=False,
        )

    def callable(self, module: nn.Module, name: str) -> Callable[..., object]:
        """Return the module, compiled if asked for; a failing compiler falls back to eager."""
        if not self.compile:
            return module
        compiled = torch.compile(module, dynamic=False)
        working = False

        def call(*args: object, **kwargs: object) -> object:
            nonlocal compiled, working
            try:
                result = compiled(*args, **kwargs)
            except Exception as error:
                if working or compiled is module:
                    raise
                say(f"{name}: not compiled, running eagerly: {type(error).__name__}: {error}")
                compiled = module
                return module(*args, **kwargs)
            working = True
            return result

        return call


def say(text: str) -> None:
    """Print a line at once, into a pipe too."""
    print(text, flush=True)


def seed_everything(seed: int) -> None:
    """Fix the random state; every stage starts with its own seed."""
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    # Every shape is used thousands of times, so a search for the fastest kernel pays.
    torch.backends.cudnn.benchmark = True


def synchronize(device: torch.device) -> None:
    """Wait for the device, if it works asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def save_figures(run: Run, stage: str, figures: dict[str, object]) -> None:
    """Record what a stage measured, for `training_figures.json`."""
    run.work.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2) + "\n"
    (run.work / f"figures_{stage}.json").write_text(text, encoding="utf-8")


def load_figures(run: Run, stage: str) -> dict[str, object]:
    """Read what a stage measured; empty if it has not run."""
    path = run.work / f"figures_{stage}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save_tensors(run: Run, stage: str, tensors: dict[str, Tensor]) -> None:
    """Save what a stage trained."""
    run.work.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(tensors, run.work / f"{stage}.safetensors")


def load_tensors(run: Run, stage: str) -> dict[str, Tensor]:
    """Load what a stage saved.

    Raises:
        FileNotFoundError: The stage has not run in this folder.
    """
    return load_file(run.work / f"{stage}.safetensors")


class Trainer:
    """AdamW with warm-up and cosine decay, gradient clipping and an average of the weights."""

    def __init__(
        self,
        run: Run,
        stage: str,
        modules: dict[str, nn.Module],
        loss: Callable[[], dict[str, Tensor]],
        *,
        steps: int,
        batch: int,
        peak_lr: float,
        end_lr: float,
        warmup: int,
        ema_decay: float,
        weight_decay: float = 0.01,
    ) -> None:
        """Prepare training.

        Args:
            run: Shared options.
            stage: Name to print and to save under.
            modules: The networks to train, already on the device.
            loss: Draws a batch and returns losses, of which "loss" is minimised. It must not
                synchronise with the host, or it cannot be captured.
            steps: Number of steps of this stage.
            batch: Batch size, to report pictures per second.
            peak_lr: Learning rate after the warm-up.
            end_lr: Learning rate at the last step.
            warmup: Steps of linear warm-up, at most a tenth of all.
            ema_decay: Decay of the average of the weights per step.
            weight_decay: Applied to matrices and convolutions only.
        """
        self.run, self.stage, self.loss = run, stage, loss
        self.steps, self.batch = steps, batch
        self.peak_lr, self.end_lr, self.warmup = peak_lr, end_lr, min(warmup, max(1, steps // 10))
        self.ema_decay = ema_decay
        self.parameters = {
            parameter_key(prefix, name): parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
        }
        self.ema = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.ema_steps = 0
        self.lr = torch.tensor(0.0, device=run.device)
        decayed = [p for p in self.parameters.values() if p.ndim > 1]
        others = [p for p in self.parameters.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": weight_decay}, {"params": others}],
            lr=self.lr,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=True,
            capturable=run.device.type == "cuda",
        )
        self.sums: dict[str, Tensor] = {}

    def learning_rate(self, step: int) -> float:
        """Learning rate at a step counted from 0."""
        if step < self.warmup:
            return self.peak_lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.end_lr + (self.peak_lr - self.end_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.run.autocast():
            losses = self.loss()
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0, foreach=True)
        self.optimizer.step()
        for name, value in (losses | {"grad_norm": norm}).items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((), device=self.run.device)
            self.sums[name] += value.detach().float()

    def _average(self) -> None:
        # A short memory at first, or the random initial weights would weigh in for long.
        decay = min(self.ema_decay, (1 + self.ema_steps) / (10 + self.ema_steps))
        self.ema_steps += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)

    def _captured(self) -> Callable[[], None]:
        """Capture one step; the caller has run some, so that all state is allocated."""
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def train(self) -> dict[str, object]:
        """Run all steps and return the figures of the last stretch.

        The seconds leave out the first `WARM_UP_CALLS` steps, in which networks compile.

        Raises:
            FloatingPointError: The loss is no longer finite.
        """
        device = self.run.device
        millions = sum(p.numel() for p in self.parameters.values()) / 1e6
        say(f"[{self.stage}] {self.steps} steps of {self.batch}, {millions:.2f} M parameters")
        interval = max(1, self.steps // LOG_LINES)
        side = torch.cuda.Stream() if device.type == "cuda" else None
        step_now: Callable[[], None] = self._step
        figures: dict[str, float] = {}
        start = last = time.perf_counter()
        last_step = 0
        for step in range(self.steps):
            self.lr.fill_(self.learning_rate(step))
            if side is not None and step < WARM_UP_CALLS:
                # Steps before a capture have to run on a stream other than the default one.
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    self._step()
                torch.cuda.current_stream().wait_stream(side)
            else:
                if side is not None and step == WARM_UP_CALLS:
                    step_now = self._captured_or_eager()
                step_now()
            self._average()
            if (step + 1) % interval == 0 or step + 1 == self.steps or step + 1 == WARM_UP_CALLS:
                synchronize(device)
                now = time.perf_counter()
                count = step + 1 - last_step
                figures = {name: float(value) / count for name, value in self.sums.items()}
                for value in self.sums.values():
                    value.zero_()
                rate = count / (now - last)
                shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
                say(
                    f"[{self.stage}] step {step + 1}/{self.steps} {now - start:.1f} s "
                    f"{shown} lr {float(self.lr):.2e} {rate:.2f} it/s "
                    f"{rate * self.batch:.0f} pictures/s"
                )
                if not all(math.isfinite(value) for value in figures.values()):
                    raise FloatingPointError(f"{self.stage}: loss not finite at step {step + 1}")
                figures["steps_per_second"] = rate
                last, last_step = now, step + 1
                if last_step == WARM_UP_CALLS:
                    start = now
        on_gpu = device.type == "cuda"
        return {
            **figures,
            "steps": self.steps,
            "batch": self.batch,
            "seconds": time.perf_counter() - start,
            "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
            "torch": torch.__version__,
        }

    def _captured_or_eager(self) -> Callable[[], None]:
        try:
            return self._captured()
        except Exception as error:
            say(f"[{self.stage}] no CUDA graph, running eagerly: {type(error).__name__}: {error}")
            synchronize(self.run.device)
            self.optimizer.zero_grad(set_to_none=True)
            return self._step

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the modules, and the trained ones back afterwards."""
        trained = {name: value.detach().clone() for name, value in self.parameters.items()}
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self.ema[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.parameters.items():
                    value.copy_(trained[name])


def parameter_key(prefix: str, name: str) -> str:
    """Name a parameter alike under all versions of transformers.

    Some hold a CLIPTextModel's parts in `text_model`, others directly.
    """
    return f"{prefix}.{name.removeprefix('text_model.')}"
