"""The text that ends a search: what won, why, how far it got, and how to use it."""

import io
import re
from dataclasses import replace

import pytest

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.timing_noise import Timed
from accel_search.core.trial import Goal
from accel_search.errors import TrialFailure
from accel_search.report.console.color import takes_colour
from accel_search.report.console.summary import stored_summary, summary
from accel_search.report.format import factor, figures
from accel_search.report.html.page import search_page
from accel_search.search.loop import Budget
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from accel_search.storage.run_folder import ended_record
from accel_search.storage.run_reader import of_outcome
from accel_search.storage.search_results import entry_of
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator
from tests.support.joint import ALWAYS, jointly
from tests.support.searches import point, run

SPACE = JointSpace(("deepcache",), WORKLOAD)


def text(outcome, **settings):
    use = [] if outcome.winner is None else ["use", "this"]
    return summary(outcome, Settings(**settings), SPACE, use=use)


@pytest.fixture(scope="module")
def found():
    return run(FakeEvaluator())


def test_the_winner_its_figures_and_its_use_are_said(found):
    said = text(found)
    assert "The largest speedup within 2 % of the baseline's score:" in said
    assert "  deepcache  cache_interval=4  cache_branch_id=3" in said
    assert said.index("  speedup: 1.90") < said.index("32 held-out prompts")
    assert "  in the search: speedup: 1.90" in said
    assert "16 points, 16 distinct; 16 measured, in " in said
    assert "Every distinct candidate was measured." in said
    assert said.endswith("\n\nUse it:\n  use\n  this")
    assert max(map(len, said.splitlines())) <= 90


def test_the_fastest_few_are_listed_with_the_winner_among_them(found):
    rows = [line for line in text(found).splitlines() if "deepcache(" in line]
    assert len(rows) == 5
    assert [row.endswith("deepcache(4, 3)") for row in rows if row.startswith("* ")] == [True]


def test_the_rival_is_said_to_do_as_well_or_not(found):
    assert "None is as fast within the bound" in text(found)
    worse = run(FakeEvaluator(lambda candidate: (1.2, 0.019)))
    assert "fewer steps do as well, with nothing to apply" in " ".join(text(worse).split())


def test_the_first_figures_are_of_the_held_out_prompts(found):
    after = replace(
        found.held_out, speedup=Estimate(1.7, 1.6, 1.8), score_loss=Estimate(0.017, 0.01, 0.03)
    )
    said = text(replace(found, held_out=after))
    first, second, *_ = (line for line in said.splitlines() if "speedup: " in line)
    assert first == "  speedup: 1.70 [1.60, 1.80]" and second.startswith("  in the search: ")
    assert "  score loss: 1.7 % [1.0, 3.0]  pass, 32 held-out prompts" in said
    tail = f"  worst tenth of prompts: {100 * after.tail_loss:.1f} %"
    assert f"{tail}\n" in said
    assert f"{tail}, allowed 20 %\n" in text(replace(found, held_out=after), max_tail_loss=0.2)
    ranged = text(replace(found, held_out=replace(after, range_loss=0.041)))
    assert "  loss of the usable range: 4.1 %\n" in ranged
    assert "usable range" not in said
    alone = text(replace(found, held_out=None))
    assert "held-out" not in alone and "in the search" not in alone
    assert "  score loss: 1.6 % [1.6, 1.6]  pass, 32 prompts" in alone


def test_a_winner_that_is_only_likely_says_how_likely_and_what_would_settle_it(found):
    unsure = replace(found.held_out, verdict=Verdict.INCONCLUSIVE, prompts_needed=128)
    said = " ".join(text(replace(found, held_out=unsure, chance=0.82)).split())
    assert "The largest speedup likely (82 %) to be within 2 % of the baseline's score:" in said
    assert "--held_out_samples 128, where --prompts has 160 or more." in said
    cut = " ".join(text(replace(found, held_out=unsure, chance=0.82, is_cut_short=True)).split())
    assert "Not validated: --time_budget was spent." in cut and "--held_out_samples" not in cut
    said = text(replace(found, held_out=unsure, chance=0.93))
    assert "  within the bound with a probability of 93 %\n" in said and "likely" not in said
    assert "probability of" not in text(replace(found, chance=0.99))
    for needed in (None, 10**6):
        at_bound = replace(unsure, prompts_needed=needed)
        assert "too near the bound" in text(replace(found, held_out=at_bound, chance=0.5))
    rest = (Settings(), SPACE.summary(), WORKLOAD, PROVENANCE, "study", None)
    unsure = replace(found, held_out=unsure, chance=0.82)
    entry = entry_of(unsure, *rest)
    assert entry.evidence.chance_within_bound == 0.82
    assert "likely (82 %) to be within the bound" in stored_summary(entry, Settings())
    low, high = entry.evidence.speedup_interval
    shown = f"  speedup: {entry.speedup:.2f} [{low:.2f}, {high:.2f}]\n"
    assert shown in stored_summary(entry, Settings())
    sure = entry_of(replace(found, chance=0.99), *rest)
    assert "likely" not in stored_summary(sure, Settings())
    assert "likely" not in text(replace(found, chance=0.99))
    assert "likely" not in text(replace(unsure, chance=None))  # As ever.


def test_fewer_steps_on_too_few_prompts_are_not_said_to_do_as_well():
    worse = run(FakeEvaluator(lambda candidate: (1.2, 0.019)))
    wide = Estimate(-0.083, -0.68, 0.514)
    rivals = tuple(
        replace(
            rival,
            assessment=replace(
                rival.assessment, score_loss=wide, verdict=Verdict.INCONCLUSIVE, prompts=2
            ),
        )
        for rival in worse.rivals
    )
    said = " ".join(text(replace(worse, rivals=rivals)).split())
    assert "do as well" not in said and "worth applying" not in said
    assert "steps may be as fast within the bound: the search's timings and prompts are" in said


def test_what_is_said_of_fewer_steps_follows_from_the_intervals_of_all(found):
    def said(**changes):
        first, *others = found.rivals
        changed = replace(first, assessment=replace(first.assessment, **changes))
        steps = changed.steps
        lines = text(replace(found, rivals=(changed, *others)))
        return " ".join(lines.split()).replace(f" {steps} steps", " N steps")

    assert "worth applying" in said()
    # Too noisy to tell, in speed or in loss, whatever the values.
    unclear = {"verdict": Verdict.INCONCLUSIVE, "score_loss": Estimate(0.03, -3.0, 3.0)}
    assert " N steps may be as fast" in said(**unclear, speedup=Estimate(2.0, 1.9, 2.1))
    passing = {"verdict": Verdict.PASS, "score_loss": Estimate(0.001, 0.0, 0.002)}
    assert " N steps may be as fast" in said(**passing, speedup=Estimate(1.5, 0.62, 2.03))
    # Those that are slower, or lose too much, for sure, do not.
    assert "worth applying" in said(**unclear, speedup=Estimate(1.2, 1.1, 1.3))
    assert "worth applying" in said(verdict=Verdict.FAIL, speedup=Estimate(2.0, 1.9, 2.1))
    # One that is faster, and loses less.
    assert " N steps are at least as fast" in said(**passing, speedup=Estimate(2.5, 2.4, 2.6))


def test_one_is_not_said_in_the_plural(found):
    (first, *_), one = found.rivals, replace(found, could_win=1, stopped="enough")
    said = text(replace(one, rivals=(replace(first, steps=1),)))
    record = ended_record(one, Settings(), SPACE.summary(), WORKLOAD, PROVENANCE, "study", None)
    assert "; 1 candidate could still win." in search_page(of_outcome(one, record, {}, None))
    early = replace(found.winner.assessment, prompts=1, is_complete=False)
    assert figures(early).endswith("after 1 prompt")
    assert "  1 step: speedup:" in said and "Enough; 1 candidate could still win." in said


def test_a_winner_that_others_were_timed_faster_than_is_explained(found):
    assert "timed faster" not in text(found)
    faster = Estimate(2.5, 2.0, 3.0)
    lucky = point(3, 1)
    trials = tuple(
        replace(each, assessment=replace(each.assessment, speedup=faster))
        if each.trial.candidate == lucky
        else each
        for each in found.trials
    )
    said = " ".join(text(replace(found, trials=trials)).split())
    assert "deepcache(3, 1) was timed faster than *: by chance" in said
    refuted = replace(found, trials=trials, refuted={lucky: 0.1})
    assert "timed faster" not in text(refuted)


def test_losses_on_which_early_stopping_errs_are_pointed_out(found):
    assert "--strategy grid" not in text(found)
    before = found.baseline.scores
    gaining = tuple(score - 0.3 + 9.0 * (place % 16 == 0) for place, score in enumerate(before))

    def scored(trial, is_given_up):
        assessment = replace(trial.assessment, is_complete=not is_given_up)
        if is_given_up:
            assessment = replace(assessment, verdict=Verdict.FAIL)
        measurement = replace(trial.trial.measurement, scores=gaining)
        return replace(
            trial, trial=replace(trial.trial, measurement=measurement), assessment=assessment
        )

    first, *others = found.trials
    trials = (scored(first, True), *(scored(trial, False) for trial in others))
    said = " ".join(text(replace(found, trials=trials)).split())
    assert "of the 1 candidate given up early, some may be within the bound" in said
    complete = tuple(scored(trial, False) for trial in found.trials)
    assert "--strategy grid" not in text(replace(found, trials=complete))


def test_whole_and_single_calls_that_disagree_are_shown_side_by_side(found):
    assert "one by one" not in text(found)
    timed = Timed(Estimate(1.4, 1.38, 1.42), Estimate(1.9, 1.8, 2.0))
    held_out = replace(found.held_out, disagreement=timed)
    said = " ".join(text(replace(found, held_out=held_out)).split())
    assert "Whole calls of the winner beside the baseline's show a speedup of 1.40 " in said
    assert "its UNet calls one by one 1.90 [1.80, 2.00]: the interval above" in said


def test_one_that_failed_on_held_out_prompts_is_named(found):
    refuted = {point(5, 3): 0.12, point(5, 2): 0.84, point(5, 1): 0.0, point(5, 0): None}
    lost = replace(found, winner=None, held_out=None, rivals=())
    for outcome in (found, lost):
        said = " ".join(text(replace(outcome, refuted=refuted)).split())
        for number, word in enumerate(
            ("failed there", "rejected", "not validated (84 %)", "rejected (12 %)")
        ):
            candidate = f"deepcache(cache_interval=5, cache_branch_id={number})"
            assert f"held-out prompts: {word}: {candidate}" in said


def test_a_budget_that_ended_it_says_what_could_still_win():
    said = text(run(FakeEvaluator(), budget=Budget(max_trials=3)))
    assert "--max_trials 3 was reached; 13 candidates could still win." in said


def test_why_candidates_failed_is_said_by_the_commonest_reason():
    class Starved(FakeEvaluator):
        """Fails in one way or another, and always at the longest interval."""

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            found = candidate.get("deepcache", {"cache_interval": 0})
            if found == {"cache_interval": 5, "cache_branch_id": 0}:
                raise TrialFailure("image 3 is black", "invalid_image")
            if found["cache_interval"] in self.starves:
                raise TrialFailure("8 bytes\nof 4 are free", "cuda_oom")
            return super().measure(candidate, split, prompts, pairs)

    evaluator = Starved()
    evaluator.starves = ()
    assert "1 failed: invalid_image: image 3 is black\n" in text(run(evaluator))
    evaluator.starves = (2, 3, 4, 5)
    said = text(run(evaluator))
    assert "16 failed, 15 of them cuda_oom: 8 bytes\\nof 4 are free\n" in said
    assert "failed, " not in text(run(FakeEvaluator()))


def test_candidates_left_at_an_early_look_are_said_to_be_open():
    outcome = run(FakeEvaluator(), strategy="guided")
    said = text(outcome)
    complete = sum(each.assessment.is_complete for each in outcome.trials)
    assert f"{len(outcome.trials)} measured, {complete} of them on all 32 prompts" in said
    assert " open " in said


def test_without_a_winner_the_goal_is_said_and_nothing_to_use():
    outcome = run(FakeEvaluator(), bound=0.0)
    said = text(outcome, req_score_loss=0.0)
    assert said.startswith("No candidate meets the goal: largest speedup within 0 %")
    assert "Use it:" not in said
    wanted = run(FakeEvaluator(), speedup=9.0)
    assert "first speedup of 9 or more" in text(wanted, req_speedup=9.0)


def test_all_bounds_of_the_goal_are_said(found):
    others = {"min_psnr": 20.0, "min_ssim": 0.7, "max_tail_loss": 0.05}
    bounds = (
        "within 2 % of the baseline's score, 5 % on the worst tenth of prompts, "
        "PSNR of 20 dB or more, SSIM of 0.7 or more"
    )
    assert f"The largest speedup {bounds}:" in text(found, **others)
    nothing = replace(found, winner=None)
    assert f"goal: largest speedup {bounds}." in text(nothing, **others)


def test_what_is_refused_for_the_noise_alone_is_named_with_what_to_do(found):
    trials = tuple(
        replace(each, assessment=replace(each.assessment, noise_floor=1.5, is_complete=number != 0))
        for number, each in enumerate(found.trials)
    )
    lost = replace(found, winner=None, held_out=None, rivals=(), trials=trials)
    said = text(lost)
    assert "deepcache(4, 3) meets the goal but for the timing noise" in " ".join(said.split())
    assert "150.0 % here" in said and "--timing_pairs than 4" in " ".join(said.split())
    assert max(map(len, said.split("\n\n")[2].splitlines())) <= 80
    # Not where one of too great a loss or of too little speed is as noisy, or where one has won.
    assert "timing noise" not in text(lost, req_score_loss=0.0)
    assert "timing noise" not in text(lost, req_speedup=9.0)
    assert "meets the goal but" not in text(found)
    # Once is enough.
    assert "meets the goal but" not in summary(lost, Settings(), SPACE, no_gain="too noisy")


@pytest.mark.parametrize(("name", "bound"), [("max_tail_loss", 0.0005), ("min_psnr", 25.0)])
def test_what_another_bound_refused_is_said_with_the_figure_of_the_fastest(found, name, bound):
    lost = replace(found, winner=None, held_out=None, rivals=())
    said = " ".join(text(lost, **{name: bound}).split())
    refused = [trial for trial in found.trials if trial.is_feasible(Goal(0.02))]
    fastest = max(refused, key=lambda trial: trial.assessment.speedup.value)
    value = {"max_tail_loss": f"{fastest.assessment.tail_loss:.3g}", "min_psnr": "an unknown one"}
    assert (
        f"--{name} {bound:g} refused {len(refused)} of the candidates within the bound on the "
        f"score; the fastest of them, {fastest.trial.candidate} at "
        f"{fastest.assessment.speedup.value:.2f}, has {value[name]}."
    ) in said
    assert "refused" not in text(lost) and "refused" not in text(found)
    # Beside a winner, those that are faster.
    slower = next(trial for trial in refused if trial.trial.candidate == point(2, 3))
    said = " ".join(text(replace(found, winner=slower), **{name: bound}).split())
    faster = [
        trial
        for trial in refused
        if trial.assessment.speedup.value > slower.assessment.speedup.value
    ]
    assert f"refused {len(faster)} of the candidates" in said


def test_long_candidates_fit_a_terminal():
    long = Candidate(
        {
            "deepcache": {"cache_interval": 5, "cache_branch_id": 0},
            "tgate": {"gate_step": 19, "sp_interval": 9, "fi_interval": 5, "warmup": 3},
            "tome": {"ratio": 0.75, "max_downsample": 4},
        }
    )
    found = run(FakeEvaluator())
    wide = Estimate(-0.123, -0.234, 0.345)
    trials = tuple(
        replace(
            each,
            trial=replace(each.trial, candidate=long),
            assessment=replace(each.assessment, score_loss=wide),
        )
        for each in found.trials
    )
    outcome = replace(found, trials=trials, winner=trials[0], refuted={long: 0.1, point(5, 0): 0.2})
    said = text(outcome)
    assert "      deepcache(5, 0) tgate(19, 9, 5, 3) tome(0.75, 4)" in said
    assert max(map(len, said.splitlines())) <= 80


def test_verdicts_are_coloured_where_a_terminal_wants_it(found, monkeypatch):
    plain = text(found)
    coloured = summary(found, Settings(), SPACE, use=["use", "this"], colour=True)
    assert "\x1b[32mpass\x1b[0m" in coloured and "\x1b" not in plain
    assert re.sub(r"\x1b\[\d*m", "", coloured) == plain

    terminal, pipe = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert takes_colour(terminal) and not takes_colour(pipe)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not takes_colour(terminal)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not takes_colour(terminal)


def test_a_timing_that_the_held_out_one_contradicts_is_not_left_standing_alone(found):
    held_out = found.held_out
    assert "two timings differ" not in text(found)
    slower = replace(held_out, speedup=Estimate(1.2, 1.1, 1.3))
    assert "The two timings differ by more" in text(replace(found, held_out=slower))


def test_what_gains_nothing_is_said_between_the_trials_and_the_rival(found):
    why = "tome costs time here: " + "it is slower with it than without, " * 4
    said = summary(found, Settings(), SPACE, no_gain=why)
    assert why.strip() in " ".join(said.split())
    assert said.index("verdict") < said.index("tome costs") < said.index("fewer steps")
    assert max(map(len, said.splitlines())) <= 90
    assert "\n\n\n" not in text(found)  # Nothing to say leaves no gap.


def test_what_each_target_of_a_joint_search_is_worth_is_said(found, monkeypatch):
    outcome, _, _ = jointly(0.8, monkeypatch, ALWAYS)
    said = summary(outcome, Settings(targets=ALWAYS.targets), ALWAYS)
    figures = [factor(each.assessment.speedup) for each in outcome.ablations]
    assert (
        "\n\nThe winner without one of its targets, on 4 prompts:\n"
        f"  without deepcache  speedup: {figures[0]}\n"
        f"  without tome       speedup: {figures[1]}\n\n"
    ) in said
    assert figures[1].startswith("3.0") or figures[1].startswith("2.9")
    assert "without one of its targets" not in text(found)
