"""What is said of a verdict on quality."""

import pytest

from accel_search.core.intervals import FEWEST_TO_PASS, Estimate
from accel_search.core.trial import Goal
from accel_search.report.reasons import quality


@pytest.mark.parametrize(
    ("loss", "prompts", "said"),
    [
        (Estimate(0.01, 0.0, 0.02), 32, "The score loss is within the allowed 2 %, on 32 prompts."),
        (
            Estimate(0.05, 0.03, 0.07),
            32,
            "The score loss is beyond the allowed 2 %, on 32 prompts.",
        ),
        (
            Estimate(0.01, -0.01, 0.03),
            32,
            "The score loss may be within the allowed 2 % or beyond, on 32 prompts.",
        ),
        (
            Estimate(0.01, 0.0, 0.02),
            FEWEST_TO_PASS - 1,
            "Its interval is within the allowed 2 %, but 7 prompts are too few for a loss to pass.",
        ),
    ],
)
def test_a_verdict_is_explained_as_its_interval_and_prompts_are(loss, prompts, said):
    assert quality(Goal(0.02), loss, prompts, None, psnr=None, ssim=None, tail_loss=None) == [said]
