"""Hosts by name, as settings write them."""

from collections.abc import Sequence as ListLike
from typing import Literal

from fusionroute.config import nearest
from fusionroute.errors import SettingsError
from fusionroute.methods.averaging.gac import Gac
from fusionroute.methods.averaging.host import Host
from fusionroute.methods.averaging.unite import Unite
from fusionroute.models.member import Member

HOSTS = {"gac": Gac, "unite": Unite}
Gate = float | Literal["default"] | None


def host_of(
    name: str,
    members: ListLike[Member],
    weights: ListLike[float] | None = None,
    gate: Gate = "default",
) -> Host:
    """The host called ``name``.

    Args:
        members, weights: see `Gac` and `Unite`.
        gate: of GaC alone; ``"default"`` leaves it as it is there.

    Raises:
        SettingsError: another name; a gate where there is none; and what the hosts themselves refuse.
    """
    if name not in HOSTS:
        raise SettingsError(f"host: {nearest(name, HOSTS)}")
    if name == "gac":
        return Gac(members, weights) if gate == "default" else Gac(members, weights, gate)
    if gate not in ("default", None):
        raise SettingsError(f"gate={gate} is an option of host gac and does nothing in {name}; leave it out")
    return Unite(members, weights)
