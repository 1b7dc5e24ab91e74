"""What somebody meant who wrote a value in the wrong form."""

import re


def as_meant(kind: str, value: object) -> str | None:
    """Write a value as it was probably meant, as YAML; None where that is not known.

    Args:
        kind: pydantic's name of what is wrong with it.
        value: as the config has it.
    """
    if kind == "list_type" and type(value) in (int, float):
        return f"[{value}]"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        number = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)\s*", value)
        if number is None or (kind == "int_type" and not number[1].isdigit()):
            return None
        if number[2]:
            return f"{float(number[1]) / 100:g}" if kind == "float_type" else None
        return f"{number[1]}, without quotes"
    return None
