"""Three tiny models of different families on disk, each with its own tokenizer, template and end; and their file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tiny_members import Known, byte_level, with_fallback

WORDS: Mapping[str, Sequence[str]] = {
    "bytes": ("hello", " world", " the", "ing", " an"),
    "pieces": (" hello", " worlds", "the", " in", "and"),
    "other": ("hell", "o wor", " th", "e ", "ings"),
}
TURNS = {"bytes": "<user>{role}:{text}", "pieces": "[{role}] {text}\n", "other": "({role}) {text}\n"}


def template(turn: str) -> str:
    """A chat template that writes every message as ``turn``, and the head of the assistant's where it is asked."""
    head, _, tail = turn.partition("{text}")
    head = "{{ '" + head.replace("{role}", "' + ROLE + '") + "' }}"
    turns = head.replace("ROLE", "m['role']") + "{{ m['content'] }}{% if not loop.last %}" + tail + "{% endif %}"
    asked = "{% if add_generation_prompt %}" + tail + head.replace("ROLE", "'assistant'") + "{% endif %}"
    return "{% for m in messages %}" + turns + "{% endfor %}" + asked


TEMPLATES = {name: template(turn) for name, turn in TURNS.items()}


def known(name: str, **options: object) -> Known:
    """One of the three, its tokenizer with its own template."""
    make = with_fallback if name == "pieces" else byte_level
    ends = {"bytes": ("<eos>",), "pieces": ("</s>",), "other": ("<|end|>",)}[name]
    made = make(name, WORDS[name], seed=list(WORDS).index(name), ends=ends, **options)
    made.tokenizer.chat_template = TEMPLATES[name]
    return made


def save(folder: Path, names: Sequence[str] = tuple(WORDS), **options: object) -> dict[str, str]:
    """Checkpoints of these names, by name."""
    for name in names:
        made = known(name, **options)
        made.member.model.save_pretrained(folder / name)
        made.tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in names}


def write_file(folder: Path, models: Mapping[str, Any], /, **values: Any) -> Path:
    """An ensemble file over these models."""
    path = folder / "ensemble.yaml"
    defaults = {"method": "safe", "models": dict(models), "drafter": next(iter(models)), "prompt": "chat_template"}
    path.write_text(yaml.safe_dump({k: v for k, v in (defaults | values).items() if v != "left out"}, sort_keys=False))
    return path
