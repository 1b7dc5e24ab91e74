"""What a value in the wrong form probably meant, and what would be right, in plain words."""

import re

# What pydantic says, and the words of a config's documentation for it.
_WORDS = (
    (r"^Input should be ", ""),
    (r" after validation, not 0$", ""),
    (r"^(?:List|Dictionary|String) should have ", "it should have "),
    (r"^it should have at least 1 item$", "it should have at least one entry"),
    (r"^a valid dictionary( or .*)?$", "a section with keys of its own"),
    (r"^a valid integer.*$", "a whole number"),
    (r"^a valid number.*$", "a number"),
    (r"^a valid string$", "text"),
    (r"^a valid list$", "a list"),
    (r"^a valid boolean.*$", "true or false"),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r"^greater", "more"),
)


def in_plain_words(message: str) -> str:
    """Say what a value should be.

    Args:
        message: pydantic's.
    """
    words = message.rstrip(".")
    for pattern, plain in _WORDS:
        words = re.sub(pattern, plain, words)
    words = words[:1].lower() + words[1:]
    return words if words.startswith("it should") else f"it should be {words}"


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
