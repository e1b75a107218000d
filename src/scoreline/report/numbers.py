"""Numbers as people read them: a few significant digits and a unit; a missing number is a dash."""

from __future__ import annotations

import math

__all__ = ["MISSING", "finite", "human_number", "human_count", "human_bytes", "human_seconds"]

MISSING = "–"
"""What stands where no number is."""


def finite(value: object) -> float | None:
    """`value` as a float, or None when it is no number, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def human_number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; trailing zeros are kept, because they were measured.

    Args:
        value: any number; None, NaN and infinities give a dash.
        digits: significant digits, at least 1.

    >>> human_number(0.1), human_number(12.345), human_number(4321.0), human_number(0.0000123)
    ('0.100', '12.3', '4321', '1.23e-5')
    """
    number = finite(value)
    if number is None:
        return MISSING
    if number == 0:
        return "0"
    # Rounding first: 9.996 has its decimals counted as 10.0.
    mantissa, power = f"{number:.{digits - 1}e}".split("e")
    exponent = int(power)
    if exponent < -4 or exponent >= 7:
        return f"{mantissa}e{exponent}"
    return f"{number:.{max(0, digits - 1 - exponent)}f}"


def _scaled(number: float, units: list[tuple[float, str]]) -> str:
    """`number` in the largest unit that leaves at least 1 after rounding to three digits."""
    rounded = float(f"{number:.2e}")
    size, unit = next(((size, unit) for size, unit in units if abs(rounded) >= size), units[-1])
    return f"{human_number(number / size)} {unit}".rstrip()


def human_count(value: float | None) -> str:
    """A count, in thousands (k), millions (M), billions (G) or trillions (T) from 10,000 on.

    >>> human_count(812), human_count(9.5), human_count(1297), human_count(812345), human_count(1.5e9)
    ('812', '9.5', '1297', '812 k', '1.50 G')
    """
    number = finite(value)
    if number is None:
        return MISSING
    if abs(number) < 10_000:
        return f"{round(number, 1):g}"
    return _scaled(number, [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")])


def human_bytes(value: float | None) -> str:
    """Bytes in decimal units (1 MB = 10^6 bytes).

    >>> human_bytes(512_000_000), human_bytes(999_999), human_bytes(12)
    ('512 MB', '1.00 MB', '12 B')
    """
    number = finite(value)
    if number is None:
        return MISSING
    if abs(number) < 1000:
        return f"{number:.0f} B"
    return _scaled(number, [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")])


def human_seconds(value: float | None) -> str:
    """A duration, from microseconds to hours.

    >>> human_seconds(0.0123), human_seconds(81.0), human_seconds(2e-6), human_seconds(7260), human_seconds(5.5)
    ('12.3 ms', '1 min 21 s', '2.00 µs', '2 h 1 min', '5.50 s')
    """
    number = finite(value)
    if number is None:
        return MISSING
    if number == 0:
        return "0 s"
    if round(number) < 60:
        return _scaled(number, [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")])
    if round(number) < 3600:
        minutes, seconds = divmod(round(number), 60)
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(round(number / 60), 60)
    return f"{hours} h {minutes} min"
