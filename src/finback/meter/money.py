"""Money as whole numbers, so that sums are exact: in millionths of a millionth of the operator's unit of currency.

A price for a million tokens with up to six decimals is then a whole number for one token, and the cost of a request is
products and sums of whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from finback.config import Settings
from finback.errors import ConfigError

UNIT = 10**12
_PER_TOKEN = 10**6  # a price of 1 for a million tokens, in millionths of millionths for one
MAX_PRICE = 10**5  # for a million tokens
MAX_MONEY = 10**6  # what one sum may be: far below what 64 bits hold


@dataclass(frozen=True, slots=True)
class Prices:
    """What one token costs. Invariant: no price is negative."""

    input: int
    cached_input: int
    output: int

    def cost(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """What a request costs; ``cached_tokens`` are those of the prompt that needed no computing."""
        fresh = prompt_tokens - cached_tokens
        return fresh * self.input + cached_tokens * self.cached_input + output_tokens * self.output

    def most(self, prompt_tokens: int, output_tokens: int) -> int:
        """What a request costs at most, however much of its prompt is cached."""
        return prompt_tokens * max(self.input, self.cached_input) + output_tokens * self.output


def prices_of(settings: Settings) -> Prices | None:
    """The prices in force; None: money is not counted. Cached input costs like other input unless it has a price."""
    given, cached = (settings.price_input, settings.price_output), settings.price_cached_input
    if given == (None, None) and cached is None:
        return None
    if settings.price_input is None or settings.price_output is None:
        raise ConfigError("price_input and price_output go together", hint="a price of 0 is allowed")
    texts = (settings.price_input, cached or settings.price_input, settings.price_output)
    return Prices(*map(_price, texts))


def parse_money(text: str) -> int:
    """An amount like 12.50."""
    amount = _decimal(text, UNIT)
    if not 0 <= amount <= MAX_MONEY * UNIT:
        raise ConfigError(f"an amount of money is a number from 0 to {MAX_MONEY}, not {text!r}")
    return amount


def money_text(amount: int) -> str:
    """The amount in digits that mean something: at least cents, at most six decimals."""
    whole, cents = f"{Decimal(amount) / UNIT:.6f}".split(".")
    return f"{whole}.{cents[:2]}{cents[2:].rstrip('0')}"


def _price(text: str) -> int:
    price = _decimal(text, _PER_TOKEN)
    if not 0 <= price <= MAX_PRICE * _PER_TOKEN:
        raise ConfigError(f"a price is a number from 0 to {MAX_PRICE} for a million tokens, not {text!r}")
    return price


def _decimal(text: str, scale: int) -> int:
    """The number in ``text`` as a whole number of parts of ``scale``; ConfigError when it is none."""
    try:
        scaled = Decimal(text) * scale
    except InvalidOperation:
        raise ConfigError(f"{text!r} is not an amount of money") from None
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise ConfigError(f"{text!r} has more decimals than can be counted", hint="use six at most")
    return int(scaled)
