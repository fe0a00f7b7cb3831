"""Which tokens of a tokenizer are no text: those that control a model, and among them those that end an answer."""

from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

END_STRINGS = frozenset(
    {
        "</s>",
        "<eos>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|eot|>",
        "<|eom|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<turn|>",
        "<end_of_utterance>",
        "<|end_of_turn|>",
        "<|endofturn|>",
        "[|endofturn|]",
        "<|endofmessage|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|END_RESPONSE|>",
        "<｜end▁of▁sentence｜>",
        "<|EOT|>",
        "<EOT>",
        "<eot>",
        "<eod>",
        "<|eos|>",
        "[EOS]",
        "[e~[",
    }
)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that control a model instead of writing text, id to spelling.

    Those that the tokenizer calls special, and added ones spelled like an end: some tokenizers list ``</s>`` as text.
    """
    controls = {
        id: token.content
        for id, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in END_STRINGS
    }
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return controls | {id: str(token) for id, token in named if id is not None}


def end_ids(tokenizer: PreTrainedTokenizerBase, model_eos_ids: Collection[int] = ()) -> frozenset[int]:
    """Every id that ends an answer: the model's, the tokenizer's, and controls spelled like an end of any family."""
    spelled = {id for id, spelling in control_tokens(tokenizer).items() if spelling in END_STRINGS}
    own = tokenizer.eos_token_id
    return frozenset({*model_eos_ids, *spelled, *([] if own is None else [own])})
