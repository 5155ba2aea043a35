"""Rotary tables against facts about published models and formulas written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finback.errors import MalformedFile, ShapeMismatch
from finback.models.rope import rotary
from finback.weights.config import RopeConfig

V3_YARN = RopeConfig(theta=10000.0, type="yarn", factor=40.0, original_max_position_embeddings=4096)
LLAMA3 = RopeConfig(
    theta=500000.0,
    type="llama3",
    factor=8.0,
    original_max_position_embeddings=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)


def plain(theta: float, dim: int) -> np.ndarray:
    return theta ** -(np.arange(0, dim, 2) / dim)


def test_plain_frequencies_are_correctly_rounded_powers() -> None:
    found = rotary(RopeConfig(theta=1e6), 128)
    assert found.frequencies.dtype == np.float32
    np.testing.assert_allclose(found.frequencies, plain(1e6, 128), rtol=2e-7)
    assert found.amplitude == 1.0


def test_linear_scaling_stretches_every_wave() -> None:
    found = rotary(RopeConfig(theta=1e4, type="linear", factor=4.0), 64)
    np.testing.assert_allclose(found.frequencies, plain(1e4, 64) / 4, rtol=2e-7)


def test_yarn_of_deepseek_blends_between_pairs_10_and_23() -> None:
    found, unscaled = rotary(V3_YARN, 64).frequencies, plain(1e4, 64)
    ramp = np.clip((np.arange(32) - 10) / 13, 0, 1)
    np.testing.assert_allclose(found, unscaled * (1 - ramp) + unscaled / 40 * ramp, rtol=3e-7)
    np.testing.assert_array_equal(found[:11], rotary(RopeConfig(theta=1e4), 64).frequencies[:11])
    np.testing.assert_allclose(found[23:], unscaled[23:] / 40, rtol=2e-7)


def test_yarn_without_truncation_blends_between_fractional_pairs() -> None:
    yarn = RopeConfig(theta=1e4, type="yarn", factor=40.0, original_max_position_embeddings=4096, truncate=False)
    low, high = (64 * math.log(4096 / (turns * 2 * math.pi)) / (2 * math.log(1e4)) for turns in (32, 1))
    ramp = np.clip((np.arange(32) - low) / (high - low), 0, 1)
    unscaled = plain(1e4, 64)
    np.testing.assert_allclose(rotary(yarn, 64).frequencies, unscaled * (1 - ramp) + unscaled / 40 * ramp, rtol=2e-6)


def test_llama3_keeps_short_waves_slows_long_ones_and_blends_between() -> None:
    found, unscaled = rotary(LLAMA3, 128).frequencies, plain(5e5, 128)
    turns = 8192 * unscaled / (2 * math.pi)
    blend = np.clip((turns - 1) / 3, 0, 1)
    np.testing.assert_allclose(found, unscaled / 8 * (1 - blend) + unscaled * blend, rtol=1e-6)
    assert 0 < ((blend > 0) & (blend < 1)).sum() < 64


def test_divisors_of_a_file_replace_the_scaling_rule() -> None:
    divisors = np.linspace(1, 8, 64, dtype=np.float32)
    np.testing.assert_allclose(
        rotary(RopeConfig(theta=5e5), 128, divisors).frequencies, plain(5e5, 128) / divisors, rtol=3e-7
    )


def test_divisors_of_another_width_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="rope_freqs"):
        rotary(RopeConfig(theta=5e5), 128, np.ones(32, np.float32))


def test_tables_hold_cos_and_sin_times_the_amplitude() -> None:
    yarn = RopeConfig(theta=1e4, type="yarn", factor=4.0, original_max_position_embeddings=1024, attention_factor=1.25)
    found = rotary(yarn, 32)
    positions = np.array([0, 1, 77, 4095], np.int32)
    cos, sin = found.tables(positions)
    angles = np.float32(positions[:, None]) * found.frequencies
    np.testing.assert_allclose(cos, 1.25 * np.cos(angles.astype(np.float64)), atol=3e-7)
    np.testing.assert_allclose(sin, 1.25 * np.sin(angles.astype(np.float64)), atol=3e-7)
    assert cos.dtype == sin.dtype == np.float32
    assert cos.flags.c_contiguous
    assert sin.flags.c_contiguous


def test_a_positions_angles_do_not_depend_on_its_neighbours() -> None:
    found = rotary(V3_YARN, 64)
    positions = np.random.default_rng(1).permutation(200_000)[:301].astype(np.int32)
    cos, sin = found.tables(positions)
    for at in range(0, 301, 7):
        alone = found.tables(positions[at : at + 1])
        np.testing.assert_array_equal(cos[at], alone[0][0])
        np.testing.assert_array_equal(sin[at], alone[1][0])


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-30, 1e30, np.nan, np.inf])
def test_divisors_that_no_scaling_uses_are_refused(bad: float) -> None:
    divisors = np.ones(64, np.float32)
    divisors[7] = bad
    with pytest.raises(MalformedFile, match="rope_freqs"):
        rotary(RopeConfig(theta=5e5), 128, divisors)
