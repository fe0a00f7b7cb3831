"""How a long job tells somebody how far it has come."""

from typing import Protocol


class Progress(Protocol):
    """A stage is one ``start``, some ``advance`` and one ``finish``; a ``finish`` alone is a line worth showing."""

    def start(self, label: str, total: int) -> None: ...

    def advance(self, n: int, note: str = "") -> None: ...

    def finish(self, message: str) -> None: ...


class Silent:
    """The default: nobody is watching."""

    def start(self, label: str, total: int) -> None:
        pass

    def advance(self, n: int, note: str = "") -> None:
        pass

    def finish(self, message: str) -> None:
        pass
