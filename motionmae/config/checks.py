"""Checks of single values: each refusal names the key, the value it got and what is allowed."""

from motionmae.errors import UserError


def check(holds: bool, key: str, value: object, allowed: str) -> None:
    """Refuse ``value`` unless ``holds``; ``allowed`` says what would be possible."""
    if not holds:
        raise UserError(f"{key}={value} is not possible: {allowed}")


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a ``value`` that is none of ``allowed``."""
    check(value in allowed, key, value, f"choose one of {', '.join(allowed)}")


def at_least(key: str, value: float, least: float) -> None:
    """Refuse a ``value`` below ``least``."""
    check(value >= least, key, value, f"it must be at least {least}")
