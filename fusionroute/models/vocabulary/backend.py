"""A fast tokenizer's backend, rebuilt with other settings. Knows nothing of bytes, nor of what its tokens write."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

UNREACHABLE = "\ufdef"  # a noncharacter, which no text holds
# They rewrite characters as they read, so that the text could not be recovered from the tokens
UNICODE_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled")
Settings = dict[str, Any]


def settings_of(tokenizer: PreTrainedTokenizerBase) -> Settings:
    """The backend of a fast tokenizer as the values of a ``tokenizer.json``, without truncation and padding."""
    backend: Any = tokenizer
    settings: Settings = json.loads(backend.backend_tokenizer.to_str())
    return settings | {"truncation": None, "padding": None}


def rebuild(settings: Settings) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(settings))


def as_continuation(settings: Settings, controls: Mapping[int, str]) -> Settings:
    """Settings under which a text is read exactly as written and as if something stood before it.

    Nothing is put in front or behind, no character is normalised, and no control token is found in text.
    """
    settings = respell(settings, controls)
    return settings | {
        "post_processor": None,
        "normalizer": _normalizer(settings["normalizer"]),
        "pre_tokenizer": _without_prefix(settings["pre_tokenizer"]),
        "model": settings["model"] | ({"dropout": None} if "dropout" in settings["model"] else {}),
        "added_tokens": [token | {"lstrip": False, "rstrip": False} for token in settings["added_tokens"]],
    }


def respell(settings: Settings, controls: Mapping[int, str], opening: str = UNREACHABLE) -> Settings:
    """Settings in which these tokens are found by other spellings, and their own are ordinary text.

    They are not left out: the backend counts its added tokens through, so those behind them would get other ids.

    Args:
        opening: the character that the new spellings begin with; see `respelled`.
    """
    names = {id: respelled(id, opening) for id in controls}
    added = [token | {"content": names.get(token["id"], token["content"])} for token in settings["added_tokens"]]
    return settings | {"added_tokens": added, "model": _renamed(settings["model"], controls, names)}


def respelled(id: int, opening: str) -> str:
    return f"{opening}{id}{opening}"


def _renamed(model: Settings, controls: Mapping[int, str], names: Mapping[int, str]) -> Settings:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: an id is a place
        return model | {
            "vocab": [
                [names[id] if controls.get(id) == piece else piece, score]
                for id, (piece, score) in enumerate(vocabulary)
            ]
        }
    new = {token: names[id] for id, token in controls.items() if vocabulary.get(token) == id}
    if not new:
        return model
    changed: Settings = {"vocab": {new.get(token, token): id for token, id in vocabulary.items()}}
    if "merges" in model:
        changed["merges"] = [pair for pair in model["merges"] if not _touches(pair, new)]
    if model.get("unk_token") in new:
        changed["unk_token"] = new[model["unk_token"]]
    return model | changed


def parts(component: Any) -> list[Settings]:
    """A normaliser, pre-tokeniser or decoder as the list of its steps, none if it is not there."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    inner = next(value for value in component.values() if isinstance(value, list))
    return [step for part in inner for step in parts(part)]


def _normalizer(component: Any) -> Any:
    kept = [step for step in parts(component) if step["type"] not in (*UNICODE_NORMALIZERS, "Prepend")]
    return {"type": "Sequence", "normalizers": kept} if kept else None


def _without_prefix(component: Any) -> Any:
    changed = []
    for step in parts(component):
        if step["type"] == "ByteLevel":
            step = step | {"add_prefix_space": False}
        elif step["type"] == "Metaspace":
            step = {key: value for key, value in step.items() if key != "add_prefix_space"}
            step["prepend_scheme"] = "never"
        changed.append(step)
    return {"type": "Sequence", "pretokenizers": changed} if changed else None


def _touches(pair: Any, hidden: Collection[str]) -> bool:
    left, right = pair if isinstance(pair, list) else pair.split(" ")
    return left in hidden or right in hidden or left + right in hidden
