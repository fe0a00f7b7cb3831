"""``--set KEY=VALUE``: options of a YAML file, from the command line."""

from collections.abc import Sequence
from typing import Any

import yaml

from fusionroute.errors import SettingsError


def with_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``sft.epochs=2`` into ``values["sft"]["epochs"]``; whether such a key exists is for the settings to say.

    Raises:
        SettingsError: no KEY=VALUE, a value that is no YAML, or a key inside what holds no options.
    """
    for override in overrides:
        _override(values, override)
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all([*parents, last]):
        raise SettingsError(f"--set takes KEY=VALUE such as sft.learning_rate=1e-4; got {override!r}")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise SettingsError(f"--set {override}: {parent!r} holds no options of its own")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"--set {override}: {text!r} is not valid YAML; put it in quotes") from None
