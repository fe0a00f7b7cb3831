"""``fusionroute env``: what to paste into a bug report."""

import json

from fusionroute.cli import options
from fusionroute.environment import machine, versions


def env(as_json: options.AsJson = False) -> None:
    """Versions and hardware, for bug reports."""
    facts = versions() | machine()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    devices = facts.pop("devices")
    for name, value in facts.items():
        print(f"{name:14} {value}")
    for device in devices:
        print(f"{'device':14} {' '.join(device.values())}")
