"""What an expert can know: every question needs one skill, and each skill belongs to a domain."""

from collections.abc import Mapping
from types import MappingProxyType

DOMAIN_OF: Mapping[str, str] = MappingProxyType(
    {
        "alphabet": "letters",
        "spelling": "letters",
        "length": "letters",
        "sums": "numbers",
        "parity": "numbers",
        "size": "numbers",
        "vask": "words",
        "opposites": "words",
        "kinds": "words",
        "food": "words",
        "copying": "words",
    }
)
SKILLS = tuple(DOMAIN_OF)
DOMAINS = tuple(dict.fromkeys(DOMAIN_OF.values()))
