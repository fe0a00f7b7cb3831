"""Experts with tokenizers of their own: UniTE and GaC at every token, and SAFE over either."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from fusionroute.config import nearest
from fusionroute.errors import SettingsError
from fusionroute.evaluation.compare.lineup.entry import SEED, Contestant, Entry, filled
from fusionroute.evaluation.compare.lineup.shared import Shared
from fusionroute.methods import ensemble_method
from fusionroute.models.ensemble import AVERAGING, SAFE, EnsembleOptions, EnsembleSettings, in_order, load_members
from fusionroute.models.fingerprint import model_fingerprint
from fusionroute.models.loading import ModelReference, resolve_dtype


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

    _seed: int | None = None  # that the entry is for, once there is one

    @model_validator(mode="after")
    def _options_are_those_of_an_ensemble(self) -> Self:
        given = self.model_fields_set - {"method", "ensemble"}
        if self.ensemble is not None and given:
            raise ValueError(f"the ensemble file says everything; leave out {', '.join(sorted(given))}, or the file")
        if self.ensemble is None:
            self._inline()
        return self

    @property
    def is_seeded(self) -> bool:
        return super().is_seeded or (self.ensemble is not None and SEED in str(self._file.model_dump()))

    def at(self, seed: int) -> Self:
        entry = super().at(seed)
        entry._seed = seed
        return entry

    def conditions(self) -> dict[str, Any]:
        """Of a file what it says, not where it lies. Its models, prompt and precision are known elsewhere."""
        if self.ensemble is None:
            return super().conditions()
        options = self._file.model_dump(mode="json", include=set(EnsembleOptions.model_fields))
        devices = {name: reference.device for name, reference in self._file.models.items()}
        return {"method": self.method, "ensemble": options | {"devices": devices}}

    def problem(self, experts: Mapping[str, ModelReference], base: ModelReference | None) -> str | None:
        if self.ensemble is not None:
            return None
        names = list(experts if self.experts is None else self.experts)
        for name, count in Counter(names).items():
            if name not in experts:
                return f"experts: {nearest(name, experts)}"
            if count > 1:
                return f"experts: {name!r} stands {count} times; name each once, and say how much it counts by weights"
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
            self._check_file(self._file, shared)
        shared.voices(names)

    def build(self, shared: Shared, seed: int) -> Contestant:
        self.check(shared)
        models = {name: self._reference(name, shared) for name in self._names(shared)}
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
        names = list(shared.experts if self.experts is None else self.experts)
        return in_order(names, options.require_drafter(names))

    def _reference(self, name: str, shared: Shared) -> ModelReference:
        """The comparison's expert, on the device that the file gives it, if it gives it one."""
        expert = shared.experts[name]
        device = None if self.ensemble is None else self._file.models[name].device
        return expert.model_copy(update={"device": device or expert.device})

    def _options(self) -> EnsembleOptions:
        return self._inline() if self.ensemble is None else self._file

    @cached_property
    def _file(self) -> EnsembleSettings:
        """The ensemble file for the entry's seed, read once, so that what was checked is what is built."""
        assert self.ensemble is not None, "asked of an entry with a file"
        file = EnsembleSettings.read(self.ensemble)
        if self._seed is None:
            return file
        return EnsembleSettings.parse(filled(file.model_dump(exclude_unset=True), self._seed), source=self.ensemble)

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
            said, wanted = reference.dtype or file.dtype, shared.experts[name].dtype or shared.dtype
            if said is not None and resolve_dtype(said) != resolve_dtype(wanted):
                raise SettingsError(
                    f"ensemble {self.ensemble} has dtype {said!r} for model {name!r} but the comparison uses "
                    f"{wanted!r}; give both the same, or leave it out of the ensemble's file"
                )
        if file.device is not None and file.device != shared.device:
            raise SettingsError(
                f"ensemble {self.ensemble} has device {file.device!r} but the comparison uses {shared.device!r}; give "
                "both the same, or leave it out of the ensemble's file (a single model of it may have its own)"
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
