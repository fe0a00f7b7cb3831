"""Teams that are hard on an export: several families, sizes and windows, and names that hold numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import tiny
from fusionroute import Router, Team
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.zoo.build import weights_folder

NAMES = ("gpt4", "7", "v2.5")  # read as part of a layer's name, each would be a number of it
HEAD = 32  # vLLM's kernel for CPUs knows heads of 32, 64, …
KINDS = ("zoo", "gemma2", "mixed")


def team(kind: str) -> Team:
    """A team of one kind: a random router picks all of its experts often.

    ``zoo``: trained Llamas in float16. ``gemma2``: soft-capped, every second layer slides. ``mixed``: four families,
    of which no two have the same sizes, layers, heads and windows.
    """
    if kind == "zoo":
        return zoo_team()
    if kind == "gemma2":
        return together(model("gemma2", 100), {name: model("gemma2", at) for at, name in enumerate(NAMES)})
    sizes: Mapping[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "head_dim": 64}
    return together(
        model("llama", 100),
        {
            "gpt4": model("gemma2", 0, num_hidden_layers=4),
            "7": model("mistral", 1, num_key_value_heads=4, sliding_window=7),
            "v2.5": model("qwen3", 2, **sizes),
        },
    )


def zoo_team() -> Team:
    """The zoo's three experts under an untrained route head."""
    lm = load_model(weights_folder("chat"))
    experts = {name: load_model(weights_folder(name)) for name in ("math", "code", "chat")}
    return together(lm, experts, tokenizer=load_tokenizer(weights_folder("chat")), prompt="chat_template")


def model(family: str, seed: int, **overrides: Any) -> Any:
    made = tiny.language_model(family, seed, **{"head_dim": HEAD, **overrides})
    # Some versions of transformers choose an attention for Gemma-2 that leaves out its soft cap
    made.set_attn_implementation("eager")
    return made


def together(lm: Any, experts: Mapping[str, Any], **options: Any) -> Team:
    router = Router(lm, len(experts))
    torch.manual_seed(5)
    torch.nn.init.normal_(router.route_head.weight)
    return Team(router=router.eval(), experts=experts, **{"tokenizer": tiny.tokenizer(), **options})


def exported(team: Team, folder: Path, **options: Any) -> Path:
    """The team saved and exported; the folder for vLLM."""
    from fusionroute.models.export.export import export_team

    team.save_pretrained(folder / "team", save_experts=True)
    export_team(folder / "team", folder / "exported", **options)
    return folder / "exported"


def shards_of_one_name(model: Path) -> None:
    """The weights of a saved model in two files of one name, told apart by their folders."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    places = {name: f"{'ab'[at % 2]}/model.safetensors" for at, name in enumerate(sorted(weights))}
    places["model.norm.weight"] = "b/model.safetensors"
    for shard in set(places.values()):
        (model / shard).parent.mkdir()
        save_file({name: weights[name] for name, place in places.items() if place == shard}, model / shard)
    index = {"metadata": {}, "weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
