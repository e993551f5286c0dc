"""`search`, `measure` and `verify`: what the command line does, on a pipeline in memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search import named_session, session
from accel_search.core.candidate import Candidate, Params
from accel_search.errors import AccelSearchError, ConfigurationError
from accel_search.live.asked import ask
from accel_search.live.results import Measured, Result
from accel_search.report import ci, trackers
from accel_search.report.console.named import named_json
from accel_search.report.console.summary import stored_summary, summary
from accel_search.search import strategies
from accel_search.search.explain import nothing_found
from accel_search.search.watchdog import Watchdog
from accel_search.session_parts import clear_verdicts
from accel_search.settings import Settings, parse_candidates
from accel_search.storage.entries import SearchEntry, estimate_of
from accel_search.storage.run import Row, Run
from accel_search.storage.run_reader import read_run

if TYPE_CHECKING:
    from accel_search.runtime.given.calls import Generate
    from accel_search.runtime.given.cases import Given
    from accel_search.search.verification import Verification

Settable = str | Mapping[str, Params]
"""Settings: `"deepcache(3,0)"`, or accelerator -> parameters."""


def search(
    pipe: Any,
    prompts: Given = None,
    *,
    targets: Sequence[str] | str | None = None,
    steps: int | None = None,
    call: Mapping[str, Any] | None = None,
    generate: Generate | None = None,
    **options: Any,
) -> Result:
    """Search the settings that make a pipeline fastest within a loss of score.

    What is measured is stored as on the command line: a search that was interrupted goes on when
    it is called again, and a finished one answers at once. The pipeline is measured as it is, with
    its own scheduler, LoRAs and processors, and comes back bit-identical, also from an exception.

    Args:
        pipe: A diffusers pipeline with a `UNet2DConditionModel`, on its device.
        prompts: Texts; mappings with a `prompt`, perhaps a `seed`, and arguments of the call of
            their own (an `image`, a `negative_prompt` …); or `builtin`, `coco` or a file, as
            `--prompts` takes it. Of those given, half are searched on, 32 at most; the others
            validate the winner.
        targets: Accelerators to search jointly.
        steps: Denoising steps.
        call: Further arguments of every call of the pipeline, e.g. `negative_prompt`, `eta`,
            `cross_attention_kwargs`, a control image.
        generate: Makes the images where they are no plain call: called with the pipeline, the
            cases and a generator for each, it returns an image for each case, by one call of the
            pipeline.
        options: Those of `accel-search` by their names, e.g. `req_score_loss`, `batch_size`,
            `time_budget`. Without `sched` the pipeline's own scheduler is measured as it is.

    Raises:
        AcceleratorError: The pipeline cannot be accelerated, or is already.
        ConfigurationError: An option or an argument is not known or not allowed.
        AccelSearchError: As on the command line.
    """
    asked = ask(pipe, prompts, call, generate, {"targets": targets, "steps": steps, **options})
    settings = asked.settings
    if settings.latency_only:
        raise ConfigurationError("latency_only: is for the command line; measure() times settings")
    _check(settings)
    bar = _shows_bar(settings)
    with asked.opened() as (evaluator, logger):
        found = session.search(settings, logger, Watchdog(), show_bar=bar, evaluator=evaluator)
    entry, outcome = found.entry, found.outcome
    if outcome is None:
        assert entry is not None
        run, text = _run_of(entry, settings), stored_summary(entry, settings)
        return Result(asked, run, entry.as_dict(), text, _winner(entry, run))
    text = summary(outcome, settings, found.space, no_gain=found.no_gain)
    ci.write(ci.of_search(entry, settings, found.record.provenance, ""), settings)
    if entry is None:
        nothing = nothing_found(outcome, settings.goal, found.no_gain)
        return Result(asked, found.run, nothing, text, None)
    return Result(asked, found.run, entry.as_dict(), text, _winner(entry, found.run))


def measure(
    pipe: Any,
    settings: Settable | Sequence[Settable],
    prompts: Given = None,
    *,
    steps: int | None = None,
    call: Mapping[str, Any] | None = None,
    generate: Generate | None = None,
    **options: Any,
) -> Measured:
    """Measure settings that you have, and no others; of several, compare them with the first.

    Args:
        pipe: As in `search`.
        settings: Accelerator -> parameters, or as `--candidate` takes it; or a list of those.
        prompts: As in `search`.
        steps: As in `search`, as are the others.
        call: See there.
        generate: See there.
        options: See there.

    Raises:
        AccelSearchError: As `search`.
    """
    named = [settings] if isinstance(settings, str | Mapping) else list(settings)
    candidates = parse_candidates([each if isinstance(each, str) else dict(each) for each in named])
    if not candidates:
        raise ConfigurationError("measure: no settings; give one or more, e.g. 'deepcache(3,0)'")
    asked = ask(pipe, prompts, call, generate, {"steps": steps, **options})
    asked = asked.again(replace(asked.settings, candidate=candidates))
    _check(asked.settings)
    bar = _shows_bar(asked.settings)
    with asked.opened() as (evaluator, logger):
        found = named_session.measure_named(
            asked.settings, logger, Watchdog(), show_bar=bar, evaluator=evaluator
        )
    where, outcome = found.provenance, found.outcome
    document = named_json(outcome, asked.settings, found.study, where)
    ci.write(ci.of_candidates(outcome, asked.settings, where), asked.settings)
    return Measured(asked, found.run, document, outcome)


def verify(
    pipe: Any,
    result: Result | str | Path,
    prompts: Given = None,
    *,
    call: Mapping[str, Any] | None = None,
    generate: Generate | None = None,
    **options: Any,
) -> Verification:
    """Measure a stored result again, e.g. after an update; nothing is written.

    Args:
        pipe: As in `search`.
        result: What `search` returned; or a result file, with the arguments of the search.
        prompts: As in `search`, as are the others; None takes those of the search.
        call: See there.
        generate: See there.
        options: See there.

    Returns:
        A record whose `verdict` is `pass`, `fail` or `inconclusive`.

    Raises:
        AccelSearchError: As `search`; or the file holds no such result.
    """
    if isinstance(result, Result):
        before = result.asked
        options = {**before.options, **options}
        prompts = before.prompts if prompts is None else prompts
        call = before.call if call is None else call
        generate = before.generate if generate is None else generate
    else:
        options = {**options, "output": result}
    asked = ask(pipe, prompts, call, generate, options)
    asked = asked.again(replace(asked.settings, verify=True))
    bar = _shows_bar(asked.settings)
    with asked.opened() as (evaluator, logger):
        return session.verify_stored(
            asked.settings, logger, Watchdog(), show_bar=bar, evaluator=evaluator
        )


def _check(settings: Settings) -> None:
    """Refuse what could be found out only after hours."""
    strategies.check(settings.strategy, settings.sampler)
    trackers.check(settings)
    clear_verdicts(settings)


def _shows_bar(settings: Settings) -> bool:
    """Return whether a bar is drawn: on a terminal, and in a notebook."""
    return not settings.quiet and (sys.stderr.isatty() or "ipykernel" in sys.modules)


def _run_of(entry: SearchEntry, settings: Settings) -> Run | None:
    """Return the trials of an earlier search; None where its run folder is gone."""
    try:
        study = entry.evidence.study or None
        return read_run(Path(settings.run_dir), study, storage=settings.storage)
    except AccelSearchError:
        return None


def _winner(entry: SearchEntry, run: Run | None) -> Row:
    """Return a search's winner with the figures that are quoted of it."""
    evidence, row = entry.evidence, None if run is None else run.winner
    figures = {
        "state": evidence.verdict,
        "speedup": estimate_of(entry.speedup, evidence.speedup_interval),
        "score_loss": estimate_of(entry.score_loss, evidence.score_loss_interval),
        "prompts": evidence.prompts,
    }
    if row is not None:
        return replace(row, **figures)  # type: ignore[arg-type]
    return Row(Candidate(entry.settings), measurement=None, failure=None, **figures)  # type: ignore[arg-type]
