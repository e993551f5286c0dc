"""Candidates as text: whatever the programs print is read back, and a mistake is one line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_search.accelerators import all_accelerators
from accel_search.accelerators.notation import LARGEST, parse_candidate, parse_candidates
from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError
from accel_search.report.format import literal, settings_lines, short
from accel_search.search.space import JointSpace
from tests.support.fakes import WORKLOAD

TOME = Candidate({"tome": {"ratio": 0.4, "max_downsample": 2}})
BOTH = Candidate({**TOME, "steps": {"num_inference_steps": 10}})


def value_of(parameter):
    most = LARGEST if parameter.maximum is None else parameter.maximum
    if isinstance(parameter.minimum, int):
        return st.integers(parameter.minimum, most)
    return st.floats(parameter.minimum, most, allow_nan=False)


def params_of(accelerator):
    own = accelerator.parameters
    values = st.tuples(*(value_of(parameter) for parameter in own))
    return values.map(lambda drawn: {one.name: value for one, value in zip(own, drawn)})


CANDIDATES = (
    st.fixed_dictionaries(
        {}, optional={name: params_of(own) for name, own in all_accelerators().items()}
    )
    .filter(bool)
    .map(Candidate)
)


def printed(candidate):
    """Return every form in which the programs write a candidate."""
    return [
        str(candidate),
        short(candidate),
        short(candidate).replace(", ", ",\u00a0"),  # On the report's page.
        "\n".join(f"  {line}" for line in settings_lines(candidate)),
        json.dumps(candidate.as_dict()),
        literal(candidate.as_dict()),
        literal(candidate.as_dict(), indent=4),
    ]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(CANDIDATES)
def test_whatever_is_printed_is_read_back(candidate):
    for text in printed(candidate):
        read = parse_candidate(text)
        assert (read, str(read)) == (candidate, str(candidate)), text


@pytest.mark.parametrize("targets", [("deepcache", "tome"), ("steps",), ("tgate",)], ids=str)
def test_every_point_of_a_space_is_read_back(targets):
    space = JointSpace(targets, WORKLOAD)
    for position in range(0, len(space), max(1, len(space) // 60)):
        point = space.candidate_at(position)
        assert all(parse_candidate(text) == point for text in printed(point))


@pytest.mark.parametrize(
    "text",
    ["tome(.4,2)+steps(10)", "steps(10)tome(4e-1, 2)",
     " tome ( 0.4 , max_downsample=2 )  steps(10) ",
     "steps num_inference_steps=10 tome(ratio = 0.4, max_downsample=2)",
     '{"steps": {"num_inference_steps": 10}, "tome": {"max_downsample": 2, "ratio": 0.4},}'],
)  # fmt: skip
def test_other_spellings_mean_the_same(text):
    assert str(parse_candidate(text)) == str(BOTH)


def test_settings_need_not_be_points_of_a_search():
    assert parse_candidate("deepcache(7,0)")["deepcache"]["cache_interval"] == 7
    assert str(parse_candidate("tome(1,2)")) == "tome(ratio=1.0, max_downsample=2)"


def test_a_file_lists_texts_and_tables():
    assert parse_candidates(["tome(0.4,2)", BOTH.as_dict()]) == (TOME, BOTH)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("deepcach(3,0)", ["'deepcach'", "did you mean deepcache?", "tome"]),
        ("magic(3)", ["'magic'", "choose from deepcache, steps, tgate, tome"]),
        ("deepcache(3)", ["lacks", "cache_branch_id"]),
        ("deepcache", ["lacks", "cache_interval, cache_branch_id"]),
        ("deepcache(3,0,1)", ["too many", "cache_interval, cache_branch_id"]),
        ("deepcache(cache_interva=3,cache_branch_id=0)", ["did you mean cache_interval?"]),
        ("deepcache(3,cache_interval=4)", ["cache_interval", "twice"]),
        ("deepcache(3,0) deepcache(4,0)", ["deepcache twice"]),
        ("deepcache(0,0)", ["cache_interval is 0", "whole number of at least 1"]),
        ("deepcache(2.5,0)", ["cache_interval is 2.5", "whole number"]),
        ("tome(1.1,2)", ["ratio is 1.1", "from 0.0 to 1.0"]),
        ('{"tome": {"ratio": NaN, "max_downsample": 2}}', ["ratio is nan"]),
        ('{"tome": {"ratio": true, "max_downsample": 2}}', ["ratio is True"]),
        ('{"tome": {"ratio": "a", "max_downsample": 2}}', ["ratio is 'a'"]),
        ('{"tome": 3}', ["ratio, max_downsample"]),
        ('{"tome"', ["JSON"]),
        ("{}", ["expected"]),
        ("[1]", ["expected"]),
        ("baseline", ["baseline", "leave it out"]),
        ("deepcache(99999999999,0)", ["cache_interval", str(LARGEST)]),
        (f"deepcache({'9' * 1500},0)", ["cache_interval", str(LARGEST)]),
        ("x" * 10_000, ["expected"]),
        ("deepcache(3,0)\x1b[31m", ["expected", "\\x1b"]),
        *((text, ["expected", "deepcache(3,0)"]) for text in
          ("", " ", "+", "deepcache(3,0)+", "+deepcache(3,0)", "deepcache(3;0)", "deepcache(3,0",
           "deepcache 3,0)", "deepcache(3,,0)", "deepcache(a,0)", "(3,0)", "deepcache(3,0))")),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_is_allowed(text, names):
    with pytest.raises(ConfigurationError) as refused:
        parse_candidate(text)
    message = str(refused.value)
    assert message.startswith("--candidate ") and message.isprintable() and len(message) < 400
    assert all(name in message for name in names), message


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(alphabet='tome(0.4,2)+steps=10{}": \n-\ud800é', max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        parse_candidate(text)
    except ConfigurationError as error:
        assert str(error).isprintable()
