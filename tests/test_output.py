from pathlib import Path

import pytest

from fusionroute.errors import OutputExistsError, SettingsError
from fusionroute.output import clear_leftovers, is_empty, new_folder, refuse_existing, write_json, write_text


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "run"

    def fail_halfway() -> None:
        with new_folder(target) as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as folder:
        (folder / "whole").write_text("x")
        assert not target.exists()
    assert [item.name for item in target.iterdir()] == ["whole"]


def test_a_failed_overwrite_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with new_folder(target) as folder:
        (folder / "old").write_text("x")
    with pytest.raises(RuntimeError), new_folder(target, overwrite=True):
        raise RuntimeError
    assert (target / "old").exists()
    with new_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert [item.name for item in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match="already holds file"):
        refuse_existing(tmp_path)
    with pytest.raises(OutputExistsError, match="is a file"):
        refuse_existing(tmp_path / "file")
    refuse_existing(tmp_path, overwrite=True)
    refuse_existing(tmp_path / "new")


def test_a_folder_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("x")
    with pytest.raises(OutputExistsError, match="already holds old"), new_folder(tmp_path / "run"):
        raise AssertionError("nothing is begun")
    assert (tmp_path / "run" / "old").read_text() == "x"


def test_json_is_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"é": 1})
    assert (tmp_path / "deep" / "a.json").read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_what_a_killed_write_left_is_nothing(tmp_path: Path) -> None:
    (tmp_path / ".settings.yaml.0a1b2c3d.tmp").write_text("half")
    assert is_empty(tmp_path)
    refuse_existing(tmp_path)
    (tmp_path / ".hidden").write_text("mine")
    assert not is_empty(tmp_path)
    (tmp_path / ".router.0a1b2c3d.tmp").mkdir()
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_text(tmp_path / "a.txt", "text")
    assert not list(tmp_path.iterdir())


def test_the_current_folder_is_not_swapped_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "project" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for path in (".", "..", here, "../../project"):
        with pytest.raises(SettingsError, match="is, or holds, the current folder"), new_folder(path, overwrite=True):
            pass
    with new_folder("../new") as folder:
        (folder / "whole").write_text("x")
    assert (tmp_path / "project" / "new" / "whole").is_file()
    assert Path.cwd().samefile(here)


def test_a_link_stays_and_leads_to_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "disk" / "run" / "old").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    with new_folder(tmp_path / "link", overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert [item.name for item in (tmp_path / "disk" / "run").iterdir()] == ["new"]
    assert [item.name for item in (tmp_path / "disk").iterdir()] == ["run"]


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in (tmp_path / "file" / "run", tmp_path / "circle" / "run", Path("/proc/run")):
        with pytest.raises(SettingsError, match=r"cannot be written \(.*\); choose another") as told, new_folder(path):
            pass
        assert "\n" not in str(told.value)
    assert (tmp_path / "file").read_text() == "x"
