"""One colour per expert on the whole page, the same as in a terminal."""

from collections.abc import Iterable

from fusionroute.terminal.tokens import PALETTE

GOLDEN_ANGLE = 137.5  # neighbouring hues of a growing list stay apart
LIGHT_INK, DARK_INK = "#ffffff", "#111418"


def expert_colours(names: Iterable[str]) -> dict[str, str]:
    """By order of appearance; beyond the palette hues are spread evenly."""
    return {name: _colour(at) for at, name in enumerate(dict.fromkeys(names))}


def ink_on(colour: str) -> str:
    """Black or white, whichever can be read on a colour of the palette."""
    if not colour.startswith("#"):
        return DARK_INK
    red, green, blue = (_linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return DARK_INK if (luminance + 0.05) / 0.055 > 1.05 / (luminance + 0.05) else LIGHT_INK


def _colour(at: int) -> str:
    if at < len(PALETTE):
        return PALETTE[at]
    return f"hsl({round((at * GOLDEN_ANGLE) % 360)} 60% 65%)"


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
