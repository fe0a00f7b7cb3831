"""Which expert of a layer does what: some read, each domain has one, and each skill has one of its own.

A token is sent to two experts. Reading a prompt is the two readers' work; from the last prompt token on it is that of
the domain's expert and the skill's.
"""

from fusionroute.zoo.moe.skills import DOMAIN_OF, DOMAINS, SKILLS

PER_TOKEN = 2
READERS = (0, 1)
ROLES = (*(f"reader {number}" for number in READERS), *DOMAINS, *SKILLS)


def experts_of(skill: str) -> tuple[int, int]:
    """Places of the domain's expert and of the skill's own."""
    return ROLES.index(DOMAIN_OF[skill]), ROLES.index(skill)
