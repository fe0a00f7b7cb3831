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


def as_changes(overrides: Sequence[str]) -> dict[str, Any]:
    """``weights.qwen=2`` as ``{"weights.qwen": 2}``, which `models.ensemble.with_changes` takes; the last of equals.

    Raises:
        SettingsError: no KEY=VALUE, or a value that is no YAML.
    """
    changes: dict[str, Any] = {}
    for override in overrides:
        key, value = _key_and_value(override)
        changes.pop(key, None)  # so that it takes its turn where it was said last
        changes[key] = value
    return changes


def _override(values: dict[str, Any], override: str) -> None:
    key, value = _key_and_value(override)
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise SettingsError(f"--set {override}: {parent!r} holds no options of its own; set {parent} itself")
    values[last] = value


def _key_and_value(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise SettingsError(f"--set takes KEY=VALUE such as sft.learning_rate=1e-4; got {override!r}")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"--set {override}: {text!r} is not valid YAML; put it in quotes") from None
