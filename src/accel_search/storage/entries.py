"""The typed entries of result files; `json_files.as_type` checks and converts what is read.

Missing fields have their defaults, and unknown ones are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from accel_search.core.candidate import Candidate
from accel_search.core.machine_health import NoiseNote
from accel_search.core.step_table import StepTable
from accel_search.core.trial import is_sure
from accel_search.core.workload import Provenance, Workload
from accel_search.storage.typed import UNSET, Meta, UnsetType, to_builtins

if TYPE_CHECKING:  # They load NumPy, for which a worker should not wait.
    from accel_search.core.assessment import Assessment
    from accel_search.core.intervals import Estimate
    from accel_search.core.outcome import Outcome
    from accel_search.core.trial import Goal

Number = Annotated[float, Meta(gt=-1e300, lt=1e300)]
"""A finite number; JSON's true and false are refused."""
Whole = Annotated[int, Meta(gt=-(2**53), lt=2**53)]
Count = Annotated[int, Meta(ge=0, le=100_000)]
"""A whole number of a workload, small enough to loop over."""
Interval = tuple[Number, Number]
Params = dict[str, dict[str, Whole | Number]]
"""Accelerator name -> parameters."""


@dataclass(frozen=True)
class StoredWorkload(Workload):
    """A workload in a file; missing fields are empty or 0."""

    pipeline: str = ""
    pipeline_class: str = ""
    scheduler_class: str = ""
    steps: Count = 0
    unet_calls: Count = 0
    height: Count = 0
    width: Count = 0
    batch_size: Count = 0
    guidance_scale: Number = 0.0
    dtype: str = ""
    device: str = ""
    latent_height: Count = 0
    latent_width: Count = 0
    attention_downsamples: tuple[Annotated[int, Meta(gt=0, le=100_000)], ...] = ()

    def known(self) -> dict[str, Any]:
        """Return the fields that are known: of an incomplete workload, those not empty or 0."""
        values = asdict(self)
        return values if self.unet_calls else {name: v for name, v in values.items() if v}


@dataclass(frozen=True)
class StoredProvenance(Provenance):
    """A provenance in a file; missing fields are empty, 0 or None."""

    device_name: str = ""
    driver: str | None = None
    threads: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    dtype: str = ""
    height: int = 0
    width: int = 0
    batch_size: int = 0
    guidance_scale: Number = 0.0
    attention_backend: str = ""
    model_id: str = ""
    revision: str | None = None
    prompt_set_hash: str = ""
    clip_model: str | None = None
    date: str = ""


@dataclass(frozen=True)
class SearchProvenance(StoredProvenance):
    """The provenance of a search's result; `batch_size` is the requested one.

    A batch that did not fit was halved, and will be again: the requested size decides whether a
    later search is the same.
    """

    measured_batch_size: int | None = None


UNKNOWN = SearchProvenance()
"""Stands for a missing provenance."""


class Measured:
    """Something stored that has a provenance."""

    provenance: StoredProvenance | None

    @property
    def where(self) -> StoredProvenance:
        """Return the provenance, `UNKNOWN` if it is missing."""
        return self.provenance or UNKNOWN

    @property
    def model_id(self) -> str:
        """Return the hub id or folder of its model; empty if unknown."""
        return self.where.model_id

    @property
    def device(self) -> str:
        """Return the name of its device; empty if unknown."""
        return self.where.device_name

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return to_builtins(self)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Speedup and loss of one candidate, on one part of the prompts."""

    speedup: Number
    score_loss: Number
    speedup_interval: Interval | None = None
    """95 %; None where it is unknown."""
    score_loss_interval: Interval | None = None
    verdict: str = ""
    prompts: int = 0
    tail_loss: Number | None = None
    """Mean loss over the worst tenth of prompts; None in files of earlier versions."""
    range_loss: Number | None = None
    """Loss as a fraction of the score's usable range; None where that is unknown."""
    prompts_needed: int | None = None
    """Prompts that would settle an inconclusive verdict; None of others."""

    @classmethod
    def of(cls, assessment: Assessment) -> Figures:
        """Return the figures of an assessment."""
        return cls(**figures(assessment))


@dataclass(frozen=True, kw_only=True)
class _Steps:
    steps: int


@dataclass(frozen=True, kw_only=True)
class FewerSteps(Figures, _Steps):
    """Figures of the baseline pipeline with fewer steps."""

    does_as_well: bool = False
    """Whether it does as well as the winner, by the rule that a candidate passes by."""


@dataclass(frozen=True, kw_only=True)
class Without:
    """A winner's speedup without one of its targets."""

    speedup: Number
    speedup_interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class SearchEvidence:
    """The evidence for a search's result."""

    goal: str | Number | None = None
    """`upbound_speedup`, or the speedup that was required."""
    req_score_loss: Number | None = None
    speedup_interval: Interval | None = None
    score_loss_interval: Interval | None = None
    verdict: str = ""
    prompts: int = 0
    tail_loss: Number | None = None
    range_loss: Number | None = None
    held_out: Figures | None = None
    """On held-out prompts: the entry's own figures, which earlier versions took from the search."""
    chance_within_bound: Number | None = None
    """Probability that the loss truly is within the bound, by held-out prompts."""
    in_search: Figures | None = None
    """On the search's prompts; None in files of earlier versions."""
    noise_floor: Number | None = None
    noise_note: NoiseNote | None = None
    """What to say of the noise where it is large."""
    fewer_steps: tuple[FewerSteps, ...] = ()
    without: dict[str, Without] = field(default_factory=dict)
    """Target -> speedup without it."""
    step_table: StepTable | None = None
    """Where the time of the winner's pipeline calls goes; None where their UNet calls were not
    timed one by one."""
    baseline_score: Number | None = None
    shuffled_score: Number | None = None
    """Mean score of the baseline's images against other prompts, the floor of the usable range."""
    refuted_on_held_out: tuple[Params, ...] = ()
    strategy: str | None = None
    search: dict[str, Any] = field(default_factory=dict)
    """The search's options and values, from `search_results.search_identity`."""
    space_points: int | None = None
    space_distinct: int | None = None
    trials_measured: int | None = None
    trials_failed: int | None = None
    trials_resumed: int | None = None
    settled: bool = False
    could_win: int | None = None
    stopped: str | None = None
    seconds: Number | None = None
    peak_memory_bytes: int | None = None
    study: str = ""
    prompts_needed: int | UnsetType | None = UNSET
    """Where the verdict is inconclusive: prompts that would settle it."""


@dataclass(frozen=True, kw_only=True)
class SearchEntry(Measured):
    """An entry of `search_params.json`: a search's winner."""

    speedup: Annotated[float, Meta(gt=0, lt=1e300)]
    score_loss: Number | None = None
    settings: Annotated[Params, Meta(min_length=1)]
    no_gain: str | None = None
    evidence: SearchEvidence = field(default_factory=SearchEvidence)
    provenance: SearchProvenance | None = None

    @property
    def candidate(self) -> Candidate:
        """Return the settings as a candidate."""
        return Candidate(self.settings)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the parameters are also at the top level."""
        document = super().as_dict()
        head = {name: document.pop(name) for name in ("speedup", "score_loss")}
        return {**head, **self.candidate.flat(), **document}


@dataclass(frozen=True, kw_only=True)
class Fastest:
    """The fastest candidate of a space, whatever its quality."""

    speedup_interval: Interval
    is_gain: bool = False
    params: dict[str, Whole | Number] = field(default_factory=dict)
    settings: Params = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Feasible:
    """The winner of a space within the bound on the loss of score."""

    speedup: Number
    speedup_interval: Interval | None
    score_loss: Number
    score_loss_interval: Interval | None
    verdict: str = ""
    tail_loss: Number | None = None
    range_loss: Number | None = None
    params: dict[str, Whole | Number] = field(default_factory=dict)
    settings: Params = field(default_factory=dict)
    held_out: Figures | None = None
    chance_within_bound: Number | None = None
    in_search: Figures | None = None

    @property
    def likely(self) -> str | None:
        """How likely it is within the bound, e.g. `82 %`; None where it is validated."""
        chance = self.chance_within_bound
        return None if chance is None or is_sure(chance) else f"{100 * chance:.0f} %"


@dataclass(frozen=True, kw_only=True)
class BoundEvidence:
    """The evidence for a bound on speed."""

    noise_floor: Number | None = None
    noise_note: NoiseNote | None = None
    """What to say of the noise where it is large."""
    baseline_seconds_per_image: Number | None = None
    space_points: int = 0
    space_distinct: int = 0
    trials_measured: int = 0
    trials_failed: int = 0
    speed_settled: bool = False
    search_settled: bool | None = None
    search_stopped: str | None = None
    trials_scored: int = 0
    peak_memory_bytes: int | None = None
    seconds: Number = 0.0
    study: str = ""


@dataclass(frozen=True, kw_only=True)
class BoundEntry(Measured):
    """An entry of `speedup_bounds.json`: how fast one configuration can be."""

    max_speedup: Number
    """The measured one with a margin."""
    measured_max_speedup: Number
    measured_max: Fastest
    no_gain: str | None = None
    best_feasible: Feasible | None = None
    model: str = ""
    """As `--pipe` names it."""
    latency_only: bool
    asked: dict[str, Any] | None = None
    """The options of its search, from `speedup_bounds.asked`."""
    evidence: BoundEvidence
    provenance: StoredProvenance | None = None


@dataclass(frozen=True, kw_only=True)
class FailedEntry:
    """An entry of `failed_configs` in `speedup_bounds.json`: how one configuration failed."""

    error: str
    """Its kind."""
    message: str = ""
    timestamp: str | None = None
    exit_code: int | None = None
    """Of the process or of the program, had it been run alone; below 0 a signal's."""
    seconds: Number | None = None
    batch_sizes_tried: tuple[int, ...] | UnsetType = UNSET
    bytes_asked: int | UnsetType | None = UNSET
    bytes_free: int | UnsetType | None = UNSET
    latency_only: bool | UnsetType = UNSET
    asked: dict[str, Any] | UnsetType = UNSET


def figures(assessment: Assessment) -> dict[str, Any]:
    """Return an assessment's figures by their names in the files."""
    return {
        "speedup": rounded(assessment.speedup.value),
        "score_loss": rounded(assessment.score_loss.value),
        "speedup_interval": interval_of(assessment.speedup),
        "score_loss_interval": interval_of(assessment.score_loss),
        "verdict": str(assessment.verdict),
        "prompts": assessment.prompts,
        "tail_loss": _rounded(assessment.tail_loss),
        "range_loss": _rounded(assessment.range_loss),
        "prompts_needed": assessment.prompts_needed,
    }


def fewer_steps(outcome: Outcome, goal: Goal) -> tuple[FewerSteps, ...]:
    """Return the figures of fewer steps, and whether they do as well as the winner."""
    winner = outcome.winner
    return tuple(
        FewerSteps(
            steps=rival.steps,
            does_as_well=winner is not None and rival.rivals(winner, outcome.held_out, goal),
            **figures(rival.assessment),
        )
        for rival in outcome.rivals
    )


def interval_of(estimate: Estimate) -> tuple[float, float] | None:
    """Return an estimate's interval as the files hold it; None where it is unknown."""
    return (rounded(estimate.low), rounded(estimate.high)) if estimate.is_bounded else None


def estimate_of(value: float | None, interval: tuple[float, float] | None) -> Estimate:
    """Return a stored value and its interval as an estimate; a missing value is NaN."""
    from accel_search.core.intervals import Estimate

    return Estimate(math.nan if value is None else value, *(interval or (-math.inf, math.inf)))


def rounded(value: float) -> float:
    """Round to five places: more than any interval here is worth, and short to read."""
    return round(float(value), 5)


def _rounded(value: float | None) -> float | None:
    return None if value is None else rounded(value)
