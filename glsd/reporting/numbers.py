"""Numbers as text: on pages, in charts and in tables."""


def number_text(value: float) -> str:
    """A number in three digits, or whole from 1000 on.

    >>> number_text(0.70666), number_text(16640.0)
    ('0.707', '16,640')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def share_text(share: float, error: float | None = None) -> str:
    """A share in per cent, with its standard error.

    >>> share_text(0.70666, 0.0199)
    '70.7 % ± 2.0'
    """
    return f"{100 * share:.1f} %" + ("" if error is None else f" ± {100 * error:.1f}")
