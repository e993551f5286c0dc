"""What every strategy must do, and a search's loop in its plainest form that checks every look."""

from accel_search.core.assessment import AssessedTrial, assess
from accel_search.core.candidate import Candidate
from accel_search.core.early_stopping import stages
from accel_search.core.trial import Failure, Goal, Trial
from accel_search.core.validation import Scores, foresee
from accel_search.search.space import JointSpace
from accel_search.search.strategies.base import History, Task
from tests.support.fakes import WORKLOAD, FakeEvaluator

SPACES = {
    "deepcache": JointSpace(("deepcache",), WORKLOAD),
    "tome": JointSpace(("tome",), WORKLOAD),
    "deepcache,tome": JointSpace(("deepcache", "tome"), WORKLOAD),
    "deepcache,steps": JointSpace(("deepcache", "steps"), WORKLOAD),
    "tgate,steps": JointSpace(("tgate", "steps"), WORKLOAD),
    "unknown workload": JointSpace(("deepcache", "tome"), None),
}
# Some of a space's points, as a replayed file may hold them.
SPACES["a part"] = JointSpace(
    ("deepcache", "tome"),
    WORKLOAD,
    only={SPACES["deepcache,tome"].key_at(position) for position in range(0, 200, 9)},
)
PROMPTS = 32
CHUNK = 4


def truth(candidate):
    """Harsher settings are faster and lose more; `steps` counts, `tome` does nothing."""
    speedup, loss = 1.0, 0.0
    for name, params in candidate.items():
        harsh = {
            "deepcache": lambda p: p["cache_interval"] / 5 - p["cache_branch_id"] / 9,
            "steps": lambda p: 1 - p["num_inference_steps"] / 20,
            "tgate": lambda p: 1 - p["gate_step"] / 20,
            "tome": lambda p: 0.0,
        }[name](params)
        speedup, loss = speedup * (1 + harsh), loss + 0.03 * harsh**2
    return speedup, loss


class Run:
    """A search's loop in its plainest form, every look checked."""

    def __init__(self, strategy, space, seed=0, goal=Goal(0.02), fails=lambda candidate: False):
        self.evaluator = FakeEvaluator(truth)
        self.baseline = self.evaluator.baseline()
        self.space, self.goal, self.fails = space, goal, fails
        sampler = next(iter(strategy.samplers), "")
        self.strategy = strategy(Task(space, goal, PROMPTS, CHUNK, seed, sampler))
        self.trials: dict[Candidate, AssessedTrial] = {}
        self.looks = []

    def history(self):
        """Return all that was measured, with chances by the candidates' own scores."""
        meeting = [each for each in self.trials.values() if each.is_feasible(self.goal)]
        before = self.baseline.scores
        scores = [Scores(before, each.trial.measurement.scores) for each in meeting]
        outlook = foresee(scores, (), self.goal.max_score_loss, PROMPTS)
        known = zip(meeting, outlook.log_chances, strict=True)
        return History(
            self.baseline,
            tuple(self.trials.values()),
            log_chances={each.trial.candidate: float(chance) for each, chance in known},
            shift=outlook.shift,
            error=outlook.error,
        )

    def go(self, most=60):
        for _ in range(most):
            proposal = self.strategy.ask(self.history())
            if proposal is None:
                break
            self.look(proposal)
        return self

    def look(self, proposal):
        candidate, before = proposal.candidate, self.trials.get(proposal.candidate)
        position = self.space.position(candidate)
        assert position is not None, f"{candidate} is not in the space"
        known = {self.space.position(each) for each in self.trials}
        assert before is not None or position not in known, "coincides with a measured one"
        scored = 0
        if before is not None:
            assert before.is_open, "asked for a finished candidate again"
            scored = before.assessment.prompts
        assert scored < proposal.prompts <= PROMPTS
        assert proposal.prompts in stages(PROMPTS, CHUNK)
        self.looks.append((str(candidate), proposal.prompts))
        if self.fails(candidate):
            failed = Trial(candidate, None, Failure("invalid_image", "black", 1.0))
            self.trials[candidate] = AssessedTrial(failed, None)
            return
        measured = self.evaluator.measure(candidate, prompts=range(proposal.prompts))
        assessment = assess(measured, self.baseline, self.goal.max_score_loss)
        self.trials[candidate] = AssessedTrial(Trial(candidate, measured), assessment)


def every_look_is_at_something_worth_a_look(strategy, name):
    assert Run(strategy, SPACES[name]).go(25).looks


def all_failing_ends_the_search(strategy):
    run = Run(strategy, SPACES["deepcache"], fails=lambda candidate: True).go(17)
    assert len(run.trials) <= 16
    assert run.strategy.ask(run.history()) is None


def it_ends_and_says_why(strategy, goal=Goal(0.02)):
    run = Run(strategy, SPACES["deepcache"], goal=goal).go()
    assert run.strategy.ask(run.history()) is None
    why = run.strategy.why_done(run.history())
    assert why and "\n" not in why and why[0].islower()


def the_seed_decides_everything(strategy):
    space = SPACES["deepcache,tome"]
    assert Run(strategy, space, seed=3).go(15).looks == Run(strategy, space, seed=3).go(15).looks


def a_resumed_search_repeats_nothing(strategy):
    run = Run(strategy, SPACES["deepcache"]).go(7)
    resumed = Run(strategy, SPACES["deepcache"])
    resumed.trials = dict(run.trials)
    resumed.go()
    assert set(run.looks).isdisjoint(resumed.looks)


def asking_twice_without_news_gives_the_same_answer(strategy):
    run = Run(strategy, SPACES["deepcache"])
    for _ in range(4):
        history = run.history()
        proposal = run.strategy.ask(history)
        assert proposal == run.strategy.ask(history)
        run.look(proposal)


RULES = [
    all_failing_ends_the_search,
    the_seed_decides_everything,
    a_resumed_search_repeats_nothing,
    asking_twice_without_news_gives_the_same_answer,
]
"""Those that take nothing but the strategy."""
