"""The table of step types: every figure of samples whose right values are worked out by hand."""

import math
from dataclasses import replace

import pytest

from accel_search.core.step_table import PROBES_ALONE, REST, StepRow, tabulate
from accel_search.core.trial import Measurement
from tests.support.fakes import called

PLAIN = frozenset()
PARTIAL = frozenset({("deepcache partial at branch 0", 1.0)})
MERGED = frozenset({("tome merged at 1/1", 0.5), ("tome merged at 1/2", 0.375)})
FIRST = called(1.0, (0.2, 0.1, 0.12, 0.3), (0, 3))
SECOND = called(2.0, (0.4, 0.3, 0.2, 0.4), (0, 3))
TYPES = (PLAIN, PARTIAL, PARTIAL, PLAIN)


def measured(*times, batch_size=2):
    return Measurement((0.5,), (1.0,), (30.0,), batch_size, step_times=times)


def test_each_figure_is_that_of_the_samples():
    table = tabulate(measured(FIRST, SECOND), TYPES)
    assert (table.pipeline_calls, table.batch_size) == (2, 2)
    assert table.milliseconds == 3000  # 1.5 s an image, two images.
    assert table.rows == (
        # Of 0.2, 0.3, 0.4, 0.4 s an image: 0.35. Half of the first call, 0.8 of 2 of the second.
        StepRow("plain", 2, 700.0, 0.45, 1.0),
        # 0.16 s an image; 22 % and 25 %; 0.11 / 0.25 = 0.44 and 0.25 / 0.4 = 0.625 of a plain one.
        StepRow("deepcache partial at branch 0", 2, 320.0, 0.235, 0.5325),
        # 0.28 and 0.7 s an image.
        StepRow(REST, None, 980.0, 0.315, None),
    )


def test_a_slow_pipeline_call_counts_no_more_than_another():
    slow = called(100.0, (20.0, 10.0, 12.0, 30.0), (0, 3))
    once = tabulate(measured(FIRST), TYPES)
    both = tabulate(measured(FIRST, slow), TYPES)
    for row, other in zip(once.rows, both.rows, strict=True):
        assert other.share == row.share
        assert other.relative_to_plain == row.relative_to_plain


def test_plain_calls_made_for_comparison_have_no_share_of_the_call():
    times = called(1.0, (0.45, 0.45), (), ((0, 0.2), (1, 0.4)))
    plain, merged, rest = tabulate(measured(times, batch_size=1), (MERGED, MERGED)).rows
    assert plain == StepRow(PROBES_ALONE, 0, 300.0, 0.0, 1.0)
    name = "tome merged at 1/1 (50 %), 1/2 (37.5 %)"
    assert merged == StepRow(name, 2, 450.0, 0.9, 1.5)
    assert rest == StepRow(REST, None, 100.0, 0.1, None)


def test_they_join_the_plain_calls_of_their_pipeline_call():
    first = replace(FIRST, probes=((1, 0.9),))
    plain, partial, _ = tabulate(measured(first, batch_size=1), TYPES).rows
    assert plain == StepRow("plain", 2, 300.0, 0.5, 1.0)  # Of 0.2, 0.3, 0.9.
    assert partial.relative_to_plain == pytest.approx(0.11 / 0.3, abs=1e-5)


def test_without_plain_calls_nothing_is_compared_with_them():
    merged, rest = tabulate(measured(called(1.0, (0.4, 0.4), ())), (MERGED, MERGED)).rows
    assert (merged.calls, merged.relative_to_plain, rest.calls) == (2, None, None)


def test_rows_are_in_the_order_of_their_first_call_with_plain_ones_first():
    gated = frozenset({("tgate gated", 1.0)})
    times = called(1.0, (0.1, 0.2, 0.3), (2,))
    rows = tabulate(measured(times), (gated, PARTIAL, PLAIN)).rows
    assert [row.type for row in rows[:3]] == [
        "plain",
        "tgate gated",
        "deepcache partial at branch 0",
    ]


def test_several_effects_are_named_by_accelerator():
    done = {("tgate self-attention reused", 1.0), ("tgate gated", 1.0), ("tome merged at 1/1", 0.5)}
    for other, how_much in ((0.5, "1/1, 1/2 (50 %)"), (1.0, "1/1 (50 %), 1/2 (100 %)")):
        kind = frozenset(done | {("tome merged at 1/2", other)})
        row, _ = tabulate(measured(called(1.0, (0.1,), ())), (kind,)).rows
        assert row.type == f"tgate gated, self-attention reused + tome merged at {how_much}"


def test_types_that_differ_in_an_amount_alone_are_told_apart():
    types = [frozenset({("mine kept", amount)}) for amount in (0.5, 0.50004, 1.0)]
    rows = tabulate(measured(called(1.0, (0.1, 0.2, 0.3), ())), types).rows
    assert [row.type for row in rows[:3]] == ["mine kept (50 %)", "mine kept (50.004 %)",
                                              "mine kept"]  # fmt: skip
    assert [row.milliseconds for row in rows[:3]] == [200.0, 400.0, 600.0]


def test_calls_of_another_number_are_left_out_unless_all_are_of_one_type():
    twice = called(1.0, (0.1,) * 8, ())
    assert tabulate(measured(twice), TYPES) is None
    assert tabulate(measured(FIRST, twice), TYPES) == tabulate(measured(FIRST), TYPES)
    merged, _ = tabulate(measured(twice), (MERGED,) * 4).rows
    assert (merged.calls, merged.share) == (8, 0.8)


def test_calls_with_plain_ones_in_between_for_comparison_are_left_out():
    between = called(1.0, (0.1, 0.2), (1,))
    assert tabulate(measured(between), (MERGED, MERGED)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        replace(FIRST, call=0.0),
        replace(FIRST, call=math.inf),
        replace(FIRST, seconds=(0.2, math.nan, 0.1, 0.3)),
        replace(FIRST, seconds=(0.0, 0.1, 0.1, 0.0)),
        replace(FIRST, probes=((0, -1.0),)),
        replace(FIRST, probes=((0, 5e-324),)),
        called(1.0, (), ()),
    ],
    ids=str,
)
def test_times_that_cannot_be_are_left_out(wrong):
    assert tabulate(measured(wrong), TYPES) is None
    assert tabulate(measured(FIRST, wrong), TYPES) == tabulate(measured(FIRST), TYPES)


def test_without_timed_unet_calls_there_is_no_table():
    assert tabulate(measured(), TYPES) is None
    assert tabulate(measured(), (MERGED,)) is None
    assert tabulate(measured(FIRST), ()) is None
    assert tabulate(measured(called(1.0, (), ())), ()) is None


def test_unet_calls_that_took_longer_than_their_pipeline_call_leave_it_no_rest():
    rest = tabulate(measured(replace(FIRST, call=0.7)), TYPES).rows[-1]
    assert (rest.milliseconds, rest.share) == (0.0, 0.0)
