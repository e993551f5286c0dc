"""Likeness of pictures, against its definition."""

import math

import pytest
import torch

from accel_search.runtime.scoring.similarity import similarity, to_bytes


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0))


def test_psnr_is_of_the_eight_bit_pictures(pictures):
    other = pictures.clone()
    other[1] = (other[1] + 0.1).clamp(0, 1)
    found = similarity(other, to_bytes(pictures))
    difference = (to_bytes(other)[1].double() - to_bytes(pictures)[1].double()) / 255
    expected = -10 * math.log10(difference.square().mean())
    assert found.psnr == pytest.approx([100.0, expected, 100.0], abs=1e-3)


def test_less_like_is_less(pictures):
    def noisy(amount):
        noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
        return (pictures + amount * noise).clamp(0, 1)

    found = [similarity(noisy(amount), to_bytes(pictures)) for amount in (0.0, 0.02, 0.1, 0.4)]
    for values in zip(*(each.psnr for each in found), strict=True):
        assert list(values) == sorted(values, reverse=True)
    for values in zip(*(each.ssim for each in found), strict=True):
        assert list(values) == sorted(values, reverse=True)


def test_each_picture_is_compared_with_its_own(pictures):
    whole = similarity(pictures.roll(1, 0), to_bytes(pictures))
    for index in range(3):
        one = similarity(
            pictures.roll(1, 0)[index : index + 1], to_bytes(pictures)[index : index + 1]
        )
        assert one.psnr[0] == pytest.approx(whole.psnr[index], abs=1e-3)
        assert one.ssim[0] == pytest.approx(whole.ssim[index], abs=1e-5)
