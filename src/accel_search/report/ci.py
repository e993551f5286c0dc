"""Verdicts for a CI: one case a candidate, as JUnit XML (`--junit`) and Markdown (`--markdown`)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree as ET

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.named import Comparison, NamedOutcome
from accel_search.core.trial import is_sure
from accel_search.core.verdicts import overall
from accel_search.core.workload import Provenance
from accel_search.errors import ConfigurationError
from accel_search.report.console.named import compared_words, goal_text
from accel_search.report.console.summary import shown
from accel_search.report.console.verification import why
from accel_search.report.format import factor, percent, short
from accel_search.report.reasons import of_named
from accel_search.search.verification import Verification
from accel_search.settings import Settings
from accel_search.storage.entries import SearchEntry, estimate_of
from accel_search.storage.json_files import write_atomically

NAME = "accel-search"
_NOT_XML = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0001fffd]"
)
"""What XML 1.0 forbids or advises against: control characters, halves of characters."""


@dataclass(frozen=True)
class Case:
    """One candidate with its verdict."""

    name: str
    verdict: Verdict
    reasons: Sequence[str]
    """Sentences; what would settle an inconclusive verdict is among them."""
    candidate: Candidate | None = None
    """None where a search found none."""
    speedup: Estimate | None = None
    score_loss: Estimate | None = None
    prompts: int | None = None
    seconds: float = 0.0
    """Wall seconds that measuring took; 0 where it is unknown."""


@dataclass(frozen=True)
class Checks:
    """What a run says, for a CI."""

    goal: str
    cases: Sequence[Case]
    facts: Mapping[str, str]
    """Machine and workload."""
    comparisons: Sequence[Comparison] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """Return `fail` if one case fails, `pass` if all pass."""
        return overall(case.verdict for case in self.cases)


def of_candidates(
    outcome: NamedOutcome, settings: Settings, provenance: Provenance | None
) -> Checks:
    """Return a case for each named candidate."""
    cases = []
    for named in outcome.named:
        own, reasons = named.assessed.assessment, of_named(named, settings.timing_pairs)
        case = Case(short(named.candidate), named.verdict, reasons, named.candidate)
        if own is not None:
            speedup, loss = own.speedup, own.score_loss
            case = replace(case, speedup=speedup, score_loss=loss, prompts=own.prompts)
        cases.append(replace(case, seconds=named.assessed.trial.seconds))
    return Checks(goal_text(settings), cases, _facts(settings, provenance), outcome.comparisons)


def of_verification(verification: Verification, settings: Settings) -> Checks:
    """Return a case for the stored result."""
    stored, failure = verification.stored, verification.failure
    reasons = [failure] if failure is not None else why(verification, settings.timing_pairs)
    case = Case(
        short(stored.candidate),
        verification.verdict,
        reasons,
        stored.candidate,
        verification.speedup,
        verification.score_loss,
        verification.prompts,
    )
    goal = f"the result stored in {stored.file} holds: its speedup was {factor(stored.speedup)}"
    return Checks(goal, [case], _facts(settings, verification.provenance))


def of_search(
    entry: SearchEntry | None, settings: Settings, provenance: Provenance | None, note: str
) -> Checks:
    """Return a case for a search's result, or a failed one where it found none.

    Args:
        entry: The result, of this search or of an earlier one that answers it.
        settings: The options.
        provenance: Where it was measured.
        note: A sentence: why nothing was found, or where the result comes from; may be empty.
    """
    goal = f"the fastest of {', '.join(settings.targets)}, {goal_text(settings)}"
    facts = _facts(settings, provenance)
    if entry is None:
        name = f"a winner of {' + '.join(settings.targets)}"
        return Checks(goal, [Case(name, Verdict.FAIL, [note])], facts)
    evidence = entry.evidence
    kind = "prompts" if evidence.held_out is None else "held-out prompts"
    reasons = [note] if note else []
    reasons += [f"The fastest that meets the goal, on {evidence.prompts} {kind}."]
    chance = evidence.chance_within_bound
    if chance is not None and not is_sure(chance):
        reasons[-1] = f"Likely ({100 * chance:.0f} %) to be within the bound, not validated."
    elif evidence.verdict != Verdict.PASS:
        reasons.append("The interval of its loss reaches beyond the bound: --held_out_samples.")
    loss = entry.score_loss
    case = Case(
        short(entry.candidate),
        Verdict(evidence.verdict) if evidence.verdict in set(Verdict) else Verdict.INCONCLUSIVE,
        reasons,
        entry.candidate,
        estimate_of(entry.speedup, evidence.speedup_interval),
        None if loss is None else estimate_of(loss, evidence.score_loss_interval),
        evidence.prompts,
        evidence.seconds or 0.0,
    )
    return Checks(goal, [case], facts)


def _facts(settings: Settings, where: Provenance | None) -> dict[str, str]:
    """Return what was measured, on what machine."""
    if settings.replay is not None:
        return {"Replay": settings.replay}
    facts = {
        "Pipeline": settings.pipe,
        "Scheduler": settings.sched,
        "Steps": str(settings.steps),
    }
    if where is not None:
        versions = (f"{name} {version}" for name, version in sorted(where.versions.items()))
        facts |= {
            "Images": f"{where.height} × {where.width} pixels, batch size {where.batch_size}",
            "Precision": where.dtype,
            "Device": where.device_name,
            "Driver": where.driver or "",
            "Versions": ", ".join(versions),
            "Prompts": where.prompt_set_hash,
            "Scored by": where.clip_model or "",
            "Date": where.date,
        }
    return {name: value for name, value in facts.items() if value}


def write(checks: Checks, settings: Settings) -> list[Path]:
    """Write the files that the settings request, and return them.

    Raises:
        ConfigurationError: One cannot be written.
    """
    written = []
    for name, text_of in (("junit", junit), ("markdown", markdown)):
        path = getattr(settings, name)
        if path is not None:
            try:
                write_atomically(Path(path), text_of(checks))
            except OSError as error:
                raise ConfigurationError(f"--{name} {path}: {error.strerror}") from error
            written.append(Path(path))
    return written


def junit(checks: Checks) -> bytes:
    """Return the cases as JUnit XML: passed, `<failure>`, or `<skipped>` where inconclusive."""
    counts = {
        "tests": str(len(checks.cases)),
        "failures": str(sum(case.verdict is Verdict.FAIL for case in checks.cases)),
        "errors": "0",
        "skipped": str(sum(case.verdict is Verdict.INCONCLUSIVE for case in checks.cases)),
        "time": f"{sum(case.seconds for case in checks.cases):.3f}",
    }
    root = ET.Element("testsuites", {"name": NAME, **counts})
    suite = ET.SubElement(root, "testsuite", {"name": NAME, **counts})
    properties = ET.SubElement(suite, "properties")
    for name, value in {"goal": checks.goal, **checks.facts}.items():
        ET.SubElement(properties, "property", {"name": _xml(name), "value": _xml(value)})
    for case in checks.cases:
        element = ET.SubElement(
            suite,
            "testcase",
            {"classname": NAME, "name": _xml(case.name), "time": f"{case.seconds:.3f}"},
        )
        tag = {Verdict.FAIL: "failure", Verdict.INCONCLUSIVE: "skipped"}.get(case.verdict)
        told = _xml(" ".join(map(shown, case.reasons)))
        if tag is not None:
            message = {"message": f"{case.verdict}: {told}"}
            kind = {"type": str(case.verdict)} if tag == "failure" else {}
            ET.SubElement(element, tag, message | kind)
        settings = None if case.candidate is None else json.dumps(case.candidate.as_dict())
        lines = [f"{name}: {value}" for name, value in _figures(case).items()]
        lines += [told, *([f"settings: {settings}"] if settings else [])]
        ET.SubElement(element, "system-out").text = _xml("\n".join(lines))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("", text)


def _figures(case: Case) -> dict[str, str]:
    """Return the figures with their intervals, as text."""
    return {
        "speedup": "-" if case.speedup is None else factor(case.speedup),
        "score loss": "-" if case.score_loss is None else percent(case.score_loss),
        "prompts": "-" if case.prompts is None else str(case.prompts),
    }


def markdown(checks: Checks) -> str:
    """Return the verdicts, figures, reasons, comparisons and facts as Markdown."""
    rows = [
        [f"**{case.verdict}**", _text(case.name), *map(_text, _figures(case).values())]
        for case in checks.cases
    ]
    parts = [
        f"## {NAME}: {checks.verdict}",
        f"Goal: {_text(checks.goal)}.",
        _table(["verdict", "settings", "speedup", "score loss", "prompts"], rows),
        "\n".join(
            f"- {_text(case.name)}: {_text(' '.join(map(shown, case.reasons)))}"
            for case in checks.cases
        ),
    ]
    if checks.comparisons:
        compared = [
            [short(one.candidate), factor(one.speed), percent(one.loss), compared_words(one)]
            for one in checks.comparisons
        ]
        first = _text(short(checks.comparisons[0].against))
        parts += [
            f"Compared with {first}, whose speed is 1 and whose loss counts as 0:",
            _table(
                ["settings", "speed", "score loss", ""], [list(map(_text, row)) for row in compared]
            ),
        ]
    facts = [[_text(name), _text(value)] for name, value in checks.facts.items()]
    parts.append(_table(["measured", ""], facts))
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Return any text as one line of Markdown that shows it as it is."""
    line = " ".join(_xml(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~&!@])", r"\\\1", line)
