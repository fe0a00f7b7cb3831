"""The model card of a saved team, written for the person who finds it."""

from collections.abc import Sequence
from typing import Protocol

CARD = """---
library_name: fusionroute
tags: [fusionroute, token-level-collaboration]
---
# {name}

A FusionRoute team (arXiv 2601.05106): for every token the router picks one expert and adds its own
log-probabilities to that expert's.

| expert | model | revision |
|---|---|---|
{experts}

Prompt format: {prompt}. The order of the experts is that of the router's outputs.

```python
import fusionroute as fr

team = fr.Team.from_pretrained("{name}")
completion, = team.generate(["..."], max_new_tokens=64)
print(completion.text, [record.expert for record in completion.trace])
```

`router/` is a normal transformers checkpoint (or a PEFT adapter) with `route_head.safetensors` beside it.
"""


class Entry(Protocol):
    """A row of the table; read-only, so that frozen settings fit."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str | None: ...


def model_card(name: str, experts: Sequence[Entry], prompt: str | None) -> str:
    """Markdown for ``README.md``; experts are listed in the order of the route head."""
    rows = "\n".join(f"| {entry.name} | {entry.model} | {entry.revision or 'default'} |" for entry in experts)
    return CARD.format(name=name, experts=rows, prompt=prompt or "text as it is")
