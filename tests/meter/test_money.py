"""Money against decimal arithmetic."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from finback.config import Settings
from finback.errors import ConfigError
from finback.meter.money import UNIT, money_text, parse_money, prices_of


def test_costs_are_exact() -> None:
    random_ = random.Random(3)
    for _ in range(2000):
        texts = [str(Decimal(random_.randrange(10**5)).scaleb(-random_.randrange(7))) for _ in range(3)]
        prices = prices_of(Settings(price_input=texts[0], price_cached_input=texts[1], price_output=texts[2]))
        assert prices is not None
        prompt, output = random_.randrange(10**6), random_.randrange(10**6)
        cached = random_.randrange(prompt + 1)
        fresh, hit, out = (Decimal(text) / 10**6 for text in texts)
        cost = Decimal(prices.cost(prompt, cached, output)) / UNIT
        assert cost == (prompt - cached) * fresh + cached * hit + output * out


def test_cached_input_costs_like_input_unless_priced() -> None:
    prices = prices_of(Settings(price_input="2", price_output="3"))
    assert prices is not None
    assert prices.cost(10, 4, 0) == prices.cost(10, 0, 0) == 20 * 10**6
    assert prices_of(Settings()) is None


@pytest.mark.parametrize("text", ["", "x", "-1", "NaN", "Infinity", "1e6", "0.0000001", "1e-9", "1e400"])
def test_bad_prices(text: str) -> None:
    with pytest.raises(ConfigError):
        prices_of(Settings(price_input=text, price_output="1"))


def test_half_a_price_list_is_refused() -> None:
    for settings in (Settings(price_input="1"), Settings(price_output="1"), Settings(price_cached_input="1")):
        with pytest.raises(ConfigError):
            prices_of(settings)


def test_amounts() -> None:
    assert parse_money("12.5") == 12_500_000_000_000
    assert [money_text(parse_money(text)) for text in ("12.5", "0", "3", "0.123456", "0.1000")] == [
        "12.50",
        "0.00",
        "3.00",
        "0.123456",
        "0.10",
    ]
    for text in ("-1", "1e9", "much"):
        with pytest.raises(ConfigError):
            parse_money(text)
