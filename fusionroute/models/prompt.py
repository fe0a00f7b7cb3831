"""One prompt format for all models of a team. A named template is a chat template in Jinja, like a tokenizer's own."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import jinja2
from pydantic import AfterValidator
from transformers import PreTrainedTokenizerBase

from fusionroute.config import nearest
from fusionroute.errors import PromptError, SettingsError
from fusionroute.models.vocabulary.quoting import Quoting

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message]

ALPACA = (
    "{% set turns = messages %}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set turns = messages[1:] %}"
    "{% else %}Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.{% endif %}"
    "{% for message in turns %}"
    "{% if message['role'] == 'user' %}"
    # inside an expression: transformers' Jinja drops a newline that follows a block
    "{{ '\n\n### Instruction:\n' + message['content'] + '\n\n### Response:\n' }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {"alpaca": ALPACA}
CHAT_TEMPLATE = "chat_template"


def _known(name: str | None) -> str | None:
    if name is not None and name not in (CHAT_TEMPLATE, *TEMPLATES):
        raise ValueError(nearest(name, [CHAT_TEMPLATE, *TEMPLATES]))
    return name


PromptName = Annotated[str | None, AfterValidator(_known)]  # of a format, as it stands in settings; None: text as it is


class PromptFormat:
    """Turns a prompt (a string, token ids or chat messages) into token ids.

    What a message says is text: a control token's spelling in it is read as characters, never as that token.

    Args:
        name: None takes text as it is; ``"chat_template"`` uses the tokenizer's own; else a key of `TEMPLATES`.

    Raises:
        SettingsError: an unknown name, or a tokenizer without a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str | None = None):
        if name is not None and name != CHAT_TEMPLATE and name not in TEMPLATES:
            raise SettingsError(f"prompt: {nearest(name, [CHAT_TEMPLATE, *TEMPLATES])}, or none for text as it is")
        if name == CHAT_TEMPLATE and not tokenizer.chat_template:
            raise SettingsError("prompt is chat_template but the tokenizer has none; name a template such as alpaca")
        self.tokenizer = tokenizer
        self.name = name

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of ``prompt``, ready for the first answer token. Raises `PromptError` if there are none."""
        if not isinstance(prompt, (str, Sequence)):
            raise PromptError(f"a prompt is a string, token ids or chat messages; got {type(prompt).__name__}")
        if len(prompt) == 0:
            raise PromptError("the prompt is empty; give at least one character, token id or message")
        if isinstance(prompt, str):
            ids = self._encode_text(prompt)
        elif isinstance(prompt[0], Mapping):
            ids = self._encode_messages(prompt)  # type: ignore[arg-type]
        else:
            ids = self._check_ids(prompt)  # type: ignore[arg-type]
        if not ids:
            raise PromptError(f"the prompt {prompt!r} has no tokens; give at least one")
        return ids

    def encode_answer(self, answer: str) -> list[int]:
        """Token ids of an answer that follows a prompt, with the end-of-sequence token."""
        ids: list[int] = self.tokenizer(answer, add_special_tokens=False).input_ids
        return [*ids, self.tokenizer.eos_token_id]

    def refuses(self, messages: Sequence[Message]) -> bool:
        """Whether the template raises an error at these messages, as some do at a system message."""
        try:
            if self.name is not None:
                self._render(messages)
        except jinja2.TemplateError:
            return True
        return False

    @cached_property
    def lead(self) -> str:
        """The white space that the template writes between its generation prompt and an answer.

        " " for Mistral and Llama-2, whose answers therefore begin with a space; "" for most, and if it cannot be told.
        """
        if self.name is None:
            return ""
        question, answer = {"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}
        try:
            asked = self._render([question])
            answered = self._render([question, answer], to_be_answered=False)
        except Exception:  # whatever a template raises for a conversation that it does not like
            return ""
        lead, found, _ = answered.removeprefix(asked).partition("Answer")
        return lead if answered.startswith(asked) and found and not lead.strip() else ""

    @cached_property
    def _quoting(self) -> Quoting:
        return Quoting(self.tokenizer)

    def _encode_text(self, text: str) -> list[int]:
        if self.name is not None:
            return self._encode_messages([{"role": "user", "content": text}])
        return list(self.tokenizer(text).input_ids)

    def _encode_messages(self, messages: Sequence[Message]) -> list[int]:
        if self.name is None:
            raise PromptError(
                "chat messages need a prompt format; build the team with prompt='chat_template' or a named one"
            )
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise PromptError(f"a chat message has 'role' and 'content'; got {message!r}")
        if messages[-1]["role"] == "assistant":
            raise PromptError("the last message is the assistant's; end with the one to be answered")
        # A tokenizer's own template writes its special tokens itself; a named one leaves BOS to the tokenizer
        special = self.name != CHAT_TEMPLATE
        marks = self._quoting.marks_for(m["content"] for m in messages if isinstance(m["content"], str))
        if not marks:
            return list(self.tokenizer(self._render(messages), add_special_tokens=special).input_ids)
        quoted = [
            {
                **m,
                "content": self._quoting.quote(m["content"], marks) if isinstance(m["content"], str) else m["content"],
            }
            for m in messages
        ]
        return self._quoting.encode(self._render(quoted), marks, add_special_tokens=special)

    def _render(self, messages: Sequence[Message], *, to_be_answered: bool = True) -> str:
        template = None if self.name == CHAT_TEMPLATE else TEMPLATES[self.name or ""]
        rendered = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=to_be_answered,
        )
        return str(rendered)

    def _check_ids(self, ids: Sequence[int]) -> list[int]:
        size = len(self.tokenizer)
        for token in ids:
            if isinstance(token, bool) or not hasattr(token, "__index__") or not 0 <= int(token) < size:
                raise PromptError(f"a prompt of token ids holds integers from 0 to {size - 1}; got {token!r}")
        return [int(token) for token in ids]


def as_text(prompt: Prompt) -> str:
    """A prompt in plain words for whoever has no format for it; messages one after another with their roles.

    A user's message alone is what it says, as the same question given as a string.
    """
    if isinstance(prompt, str):
        return prompt
    messages: Any = prompt
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
