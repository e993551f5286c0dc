"""Scores are of whole float32, and what the process allows elsewhere is as it was."""

from __future__ import annotations

import warnings

import pytest
import torch

from accel_search.runtime.scoring.precision import whole_float32

HAS_NEWER = hasattr(torch.backends.cudnn, "conv")
"""Whether torch has a switch for each operation."""
SWITCHES = (
    {
        "all": torch.backends,
        "products on CUDA": torch.backends.cuda.matmul,
        "convolutions on CUDA": torch.backends.cudnn.conv,
        "products on the CPU": torch.backends.mkldnn.matmul,
        "convolutions on the CPU": torch.backends.mkldnn.conv,
    }
    if HAS_NEWER
    else {}
)


def _state():
    """Return what every switch says, or that torch finds the two sets to disagree."""
    state = {name: switch.fp32_precision for name, switch in SWITCHES.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, read in {
            "older, products": torch.get_float32_matmul_precision,
            "older, products on CUDA": lambda: torch.backends.cuda.matmul.allow_tf32,
            "older, convolutions on CUDA": lambda: torch.backends.cudnn.allow_tf32,
        }.items():
            try:
                state[name] = read()
            except RuntimeError:
                state[name] = "disagrees"
    return state


def _older(precision):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision(precision)


def _newer(switch, precision):
    if not HAS_NEWER:
        pytest.skip("torch has only the older switches")
    switch.fp32_precision = precision


ALLOWED = {
    "nothing": lambda: None,
    "TF32, the older way": lambda: _older("high"),
    "bfloat16, the older way": lambda: _older("medium"),
    "TF32 for all, the newer way": lambda: _newer(torch.backends, "tf32"),
    "TF32 for products, the newer way": lambda: _newer(torch.backends.cuda.matmul, "tf32"),
    "bfloat16 on the CPU": lambda: _newer(SWITCHES.get("products on the CPU"), "bf16"),
    "first one way, then the other": lambda: (
        _older("high"),
        _newer(torch.backends.cuda.matmul, "ieee"),
    ),
}


@pytest.fixture(params=ALLOWED)
def allowed(request):
    """Allow something, and take it back after the test."""
    ALLOWED[request.param]()
    yield
    for name in SWITCHES.keys() - {"products on CUDA", "convolutions on CUDA"}:
        SWITCHES[name].fp32_precision = "none"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
    if HAS_NEWER:
        torch.backends.cuda.matmul.fp32_precision = "none"


def _is_whole(state):
    """Return whether nothing is rounded; the switches of each operation are above that of all."""
    return {state[name] for name in state.keys() - {"all"}} <= {"ieee", "highest", False}


def test_nothing_is_rounded_within_and_everything_is_as_before_after(allowed):
    before = _state()
    with pytest.raises(KeyError), whole_float32():  # Also when the body raises.
        within = _state()
        raise KeyError
    assert _is_whole(within)
    assert _state() == before


@pytest.mark.skipif(not HAS_NEWER, reason="torch has only the older switches")
def test_a_switch_that_followed_the_one_above_it_still_does(allowed):
    torch.backends.fp32_precision = "tf32"
    with whole_float32():
        pass
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.fp32_precision = "ieee"
    assert (before, torch.backends.mkldnn.conv.fp32_precision) == ("tf32", "ieee")


def test_texts_and_pictures_are_scored_so(allowed, scorer, monkeypatch):
    seen = []
    monkeypatch.setattr(scorer, "_text_features", {})
    for name in ("encode_image", "encode_text"):
        encode = getattr(scorer._model, name)
        monkeypatch.setattr(
            scorer._model,
            name,
            lambda *args, encode=encode, **kwargs: (
                seen.append(_is_whole(_state())) or encode(*args, **kwargs)
            ),
        )
    before = _state()
    scorer.score(torch.rand(1, 3, 32, 32), ["a text"])
    assert seen == [True, True]
    assert _state() == before
