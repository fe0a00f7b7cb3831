"""A token as a reply shows it: in OpenAI's log-probabilities a token is a text and its bytes."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from fusionroute.models.vocabulary.backend import settings_of
from fusionroute.models.vocabulary.ends import control_tokens
from fusionroute.models.vocabulary.writing import Writer, spellings, writer_by_spelling, writer_of
from fusionroute.server.offer import Offered


class TokenText:
    """Of one tokenizer, whichever kind it is: where bytes are not known, a token alone is decoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        settings = settings_of(tokenizer) if tokenizer.is_fast else None
        self._tokenizer = tokenizer
        self._spelled = spellings(tokenizer, settings)
        self._controls = control_tokens(tokenizer)
        self._writer: Writer | None = (
            writer_by_spelling(self._spelled.values()) if settings is None else writer_of(settings)
        )

    def bytes_of(self, id: int) -> bytes:
        """What the token writes; a control token, which writes nothing, by its name."""
        if id in self._controls:
            return self._controls[id].encode()
        spelled = self._spelled.get(id)
        if isinstance(spelled, bytes):
            return spelled
        if spelled is None or self._writer is None:
            return str(self._tokenizer.decode([id])).encode()
        return self._writer(spelled)

    def text(self, id: int) -> str:
        """Its text; half a character as ``bytes:\\xe2``, as OpenAI writes it, so that no two tokens are one."""
        written = self.bytes_of(id)
        try:
            return written.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


def token_texts(offer: Mapping[str, Offered]) -> dict[str, TokenText]:
    """For each model id; ids that share a tokenizer share what is known of it."""
    tokenizers = {id(offered.tokenizer): offered.tokenizer for offered in offer.values()}
    made = {key: TokenText(tokenizer) for key, tokenizer in tokenizers.items()}
    return {name: made[id(offered.tokenizer)] for name, offered in offer.items()}
