"""What a user may catch. Every message says what came, what is allowed and what to do."""


class FusionRouteError(Exception):
    """Root of all errors that fusionroute raises on purpose."""


class SettingsError(FusionRouteError, ValueError):
    """An option is unknown, misspelt or out of range."""


class PromptError(FusionRouteError, ValueError):
    """A prompt is empty, too long, or of a kind the team's prompt format cannot render."""


class CheckpointError(FusionRouteError, ValueError):
    """A model or team folder is missing, half-written or corrupt."""


class VocabularyError(FusionRouteError, ValueError):
    """The models of a team do not share one vocabulary."""


class UnsupportedModelError(FusionRouteError, ValueError):
    """A model cannot take turns, for example because its cache cannot be cut back."""


class RequestTooLargeError(FusionRouteError, ValueError):
    """One request needs more cache memory than the limit allows, so waiting would not help."""


class ModelsTooLargeError(FusionRouteError, MemoryError):
    """Models take more memory than their device has free; told before their weights are read."""


class ModelOutputError(FusionRouteError):
    """A model returned logits that are no distribution; what was written before stays valid."""


class DataError(FusionRouteError, ValueError):
    """Training data is missing, empty, malformed, or does not belong to these scores."""


class OutputExistsError(FusionRouteError, ValueError):
    """The output folder already holds something else; nothing is overwritten without being asked."""
