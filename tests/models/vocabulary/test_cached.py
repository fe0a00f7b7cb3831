import logging
from pathlib import Path

import pytest
import torch

import tiny_tokenizers
from fusionroute.models.vocabulary import Pieces, UnionVocabulary, cache_folder, cached, union
from fusionroute.models.vocabulary.cached import read_cached, write_cached

MEMBERS = (Pieces(tiny_tokenizers.byte_level()), Pieces(tiny_tokenizers.llama2()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSIONROUTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vocabulary"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that vocabularies are really aligned."""
    real, calls = union._align, list[int]()
    monkeypatch.setattr(union, "_align", lambda members: (calls.append(1), real(members))[1])
    return calls


def same(a: UnionVocabulary, b: UnionVocabulary) -> bool:
    tensors = zip((*a.maps, a.prefix_end, a.is_drafters), (*b.maps, b.prefix_end, b.is_drafters), strict=True)
    facts = [(u.size, u.end, list(u.strings), [u.drafter_ids(s) for s in range(u.size)]) for u in (a, b)]
    return facts[0] == facts[1] and all(torch.equal(x, y) for x, y in tensors)


def test_the_folder_is_the_users_choice_or_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSIONROUTE_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("FUSIONROUTE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/fusionroute")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "fusionroute"


def test_vocabularies_are_aligned_once(folder: Path, made: list[int]) -> None:
    first = UnionVocabulary(MEMBERS)
    assert same(first, UnionVocabulary(MEMBERS))
    assert len(made) == 1
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_another_order_or_another_member_is_another_union(folder: Path, made: list[int]) -> None:
    fingerprints = {UnionVocabulary(m).fingerprint for m in (MEMBERS, MEMBERS[::-1], MEMBERS[:1], MEMBERS[1:])}
    assert len(fingerprints) == len(made) == len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "foreign", "of another", "lacking", "shorter", "folder"])
def test_a_file_that_is_not_what_it_should_be_is_made_again(folder: Path, made: list[int], damage: str) -> None:
    first = UnionVocabulary(MEMBERS)
    (path,) = folder.iterdir()
    content, kept = path.read_bytes(), read_cached("union", first.fingerprint)
    assert kept is not None
    if damage in ("empty", "cut", "garbage"):
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "garbage": b"\x07" * 999}[damage])
    elif damage == "foreign":
        write_cached("other", first.fingerprint, kept)
        path.write_bytes(next(folder.glob("other-*")).read_bytes())
    elif damage == "of another":
        other = UnionVocabulary(MEMBERS[:1])
        path.write_bytes((folder / path.name.replace(first.fingerprint, other.fingerprint)).read_bytes())
    elif damage == "lacking":
        write_cached("union", first.fingerprint, {name: kept[name] for name in kept if name != "own"})
    elif damage == "shorter":
        write_cached("union", first.fingerprint, kept | {"map_1": kept["map_1"][:-1].clone()})
    else:
        path.unlink()
        path.mkdir()
    before = len(made)
    assert same(first, UnionVocabulary(MEMBERS))
    assert len(made) == before + 1
    if damage != "folder":
        assert same(first, UnionVocabulary(MEMBERS))
        assert len(made) == before + 1


def test_a_folder_that_cannot_be_written_is_said_once_and_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FUSIONROUTE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cached, "_warned", set())
    with caplog.at_level(logging.WARNING):
        assert same(UnionVocabulary(MEMBERS), UnionVocabulary(MEMBERS))
    assert len(made) == 2
    (record,) = caplog.records
    assert "cannot be written" in record.getMessage()
    assert "set FUSIONROUTE_CACHE to a folder of yours" in record.getMessage()


def test_a_write_that_fails_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(cached, "save_file", fails)
    UnionVocabulary(MEMBERS)
    assert list(folder.iterdir()) == []
