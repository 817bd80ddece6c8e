"""How numbers and fields are written for people."""

from __future__ import annotations

from typing import Any

SYMBOLS = {"loss.lambda_attr": "λ1", "loss.lambda_aal": "λ2", "loss.lambda_mdal": "λ3", "run.seed": "seed"}


def symbol(name: str) -> str:
    """Return the paper's symbol of a config field, or the field's own name."""
    return SYMBOLS.get(name, name)


def percent(value: float | None) -> str:
    """Return a fraction as percent with one digit, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Return a difference of fractions in points, signed, or a dash."""
    return "–" if value is None else f"{round(100 * value, 1) + 0.0:+.1f}"


def duration(seconds: float) -> str:
    """Return seconds as ``1 h 02 min``, ``3 min 10 s`` or ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def short(value: Any) -> str:
    """Return a config value with two digits."""
    if isinstance(value, float):
        return f"{value:.2g}" if value < 10 else f"{value:.0f}"
    return ",".join(map(short, value)) if isinstance(value, tuple) else str(value)
