"""Experts with tokenizers of their own: UniTE and GaC at every token, and SAFE over either."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from fusionroute.config import nearest
from fusionroute.errors import SettingsError
from fusionroute.evaluation.compare.lineup.entry import Contestant, Entry
from fusionroute.evaluation.compare.lineup.shared import Shared
from fusionroute.methods import ensemble_method
from fusionroute.models.ensemble import AVERAGING, SAFE, EnsembleOptions, EnsembleSettings, in_order, load_members
from fusionroute.models.fingerprint import model_fingerprint
from fusionroute.models.loading import ModelReference


class _AcrossEntry(Entry):
    """Options as in an ensemble file, with the same defaults (`EnsembleOptions`), or such a file."""

    is_joint: ClassVar[bool] = True

    experts: tuple[str, ...] | None = None  # which of the comparison's take part; None = all of them
    ensemble: str | None = None  # an ensemble file, which then says everything
    drafter: str | None = None
    sharpening: str | None = None
    threshold: float | None = None
    weights: dict[str, float] | None = None
    gate: float | None = None

    @model_validator(mode="after")
    def _options_are_those_of_an_ensemble(self) -> Self:
        given = self.model_fields_set - {"method", "ensemble"}
        if self.ensemble is not None and given:
            raise ValueError(f"the ensemble file says everything; leave out {', '.join(sorted(given))}, or the file")
        if self.ensemble is None:
            self._inline()
        return self

    def problem(self, experts: Mapping[str, ModelReference], base: ModelReference | None) -> str | None:
        if self.ensemble is not None:
            return None
        names = list(dict.fromkeys(self.experts or experts))
        for name in names:
            if name not in experts:
                return f"experts: {nearest(name, experts)}"
        if len(names) < 2:
            return f"{self.method} combines experts; name at least two"
        if self.drafter is None:
            return f"drafter is missing; name the expert that does best alone, one of {', '.join(names)}"
        return self._inline().problem(names)

    def models(self, shared: Shared) -> dict[str, ModelReference]:
        return {f"expert {name}": shared.experts[name] for name in self._names(shared)}

    def check(self, shared: Shared) -> None:
        """Tokenizers are read and aligned here, which takes no weights.

        A fair comparison gives every method the same models and the same prompts.
        """
        names = self._names(shared)
        if self.ensemble is not None:
            self._check_file(EnsembleSettings.read(self.ensemble), shared)
        shared.voices(names)

    def build(self, shared: Shared, seed: int) -> Contestant:
        self.check(shared)
        models = {name: shared.experts[name] for name in self._names(shared)}
        members = load_members(models, shared.voices(models), dtype=shared.dtype, device=shared.device)
        method = ensemble_method(members, self._options())
        return Contestant(method, members[0].pieces.tokenizer, members[0].prompt)

    def _names(self, shared: Shared) -> list[str]:
        """The experts that take part, the drafter first. Raises `SettingsError` for a file that names others."""
        options = self._options()
        if isinstance(options, EnsembleSettings):
            unknown = [name for name in options.models if name not in shared.experts]
            if unknown:
                raise SettingsError(
                    f"ensemble {self.ensemble} has the model {unknown[0]!r}, which is none of the comparison's experts "
                    f"({', '.join(shared.experts)}); a fair comparison gives every method the same ones"
                )
            return in_order(options.models, options.require_drafter(options.models))
        names = dict.fromkeys(self.experts or shared.experts)
        return in_order(names, options.require_drafter(names))

    def _options(self) -> EnsembleOptions:
        return self._inline() if self.ensemble is None else EnsembleSettings.read(self.ensemble)

    def _inline(self) -> EnsembleOptions:
        """What stands in the compare file, as an ensemble file would say it. Raises `SettingsError`."""
        said = self.model_dump(include=set(EnsembleOptions.model_fields), exclude_unset=True)
        return EnsembleOptions.parse(said | self._fixed())

    def _fixed(self) -> dict[str, Any]:
        """What the name of the method says already."""
        raise NotImplementedError

    def _check_file(self, file: EnsembleSettings, shared: Shared) -> None:
        for option, wanted in self._fixed().items():
            if getattr(file, option) != wanted:
                raise SettingsError(
                    f"ensemble {self.ensemble} has {option} {getattr(file, option)}, so it is not of the method "
                    f"{self.method}; choose another file, or another method"
                )
        for name, reference in file.models.items():
            content, expected = (
                model_fingerprint(each, shared.dtype)["content"] for each in (reference, shared.experts[name])
            )
            if content != expected:
                raise SettingsError(
                    f"model {name!r} of ensemble {self.ensemble} is another than the comparison's expert "
                    f"({reference.model}, not {shared.experts[name].model}); a fair comparison gives every method the "
                    "same ones"
                )
        if file.prompt != shared.prompt:
            raise SettingsError(
                f"ensemble {self.ensemble} has prompt {file.prompt!r} but the comparison uses {shared.prompt!r}; give "
                "both the same"
            )


class EveryTokenEntry(_AcrossEntry):
    """UniTE or GaC as they were published: all models at every token."""

    method: Literal["unite", "gac"]

    def _fixed(self) -> dict[str, Any]:
        return {"method": AVERAGING, "host": self.method}


class SafeEntry(_AcrossEntry):
    """SAFE: the host only where it is safe and useful."""

    method: Literal["safe"] = "safe"
    host: str | None = None
    draft_length: int | None = None

    def _fixed(self) -> dict[str, Any]:
        return {"method": SAFE}
