"""Structures as texts, such as `blocks:4` and `nm:2:4`. Needs no Keras."""

# `{name: (class in `structures`, its numbers)}`.
STRUCTURES = {"blocks": ("Blocks", ("size",)), "nm": ("NM", ("n", "m"))}
EXAMPLES = "none, blocks:4 or nm:2:4"


def parse_structure(text):
    """Return what a text says about a structure.

    Args:
        text: `"none"`, or a name of `STRUCTURES` with its numbers, as `"nm:2:4"`.

    Returns:
        `(class name, {argument: number})`; None for `"none"`.

    Raises:
        ValueError: for any other text.
    """
    if text == "none":
        return None
    name, *numbers = text.split(":")
    if name not in STRUCTURES or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"must be {EXAMPLES}; received {text!r}.")
    cls, arguments = STRUCTURES[name]
    if len(numbers) != len(arguments):
        raise ValueError(f"must be {EXAMPLES}; received {text!r}.")
    return cls, dict(zip(arguments, map(int, numbers), strict=True))
