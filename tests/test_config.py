from pathlib import Path

import pytest

from fusionroute.config import GenerationSettings, read_yaml
from fusionroute.errors import SettingsError


def test_settings_survive_yaml(tmp_path: Path) -> None:
    settings = GenerationSettings(max_new_tokens=5, do_sample=True, top_p=0.9, stop=("a",))
    (tmp_path / "s.yaml").write_text(settings.to_yaml())
    assert GenerationSettings.from_yaml(tmp_path / "s.yaml") == settings


def test_a_misspelt_key_names_the_file_and_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("max_new_token: 5\n")
    with pytest.raises(SettingsError, match=r"s\.yaml: unknown option 'max_new_token'; did you mean 'max_new_tokens'"):
        GenerationSettings.from_yaml(tmp_path / "s.yaml")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text("experts:\n  math: a/b\n  code: c/d\n  math: e/f\n")
    with pytest.raises(SettingsError, match=r"'math' stands twice \(line 4\)"):
        read_yaml(tmp_path / "team.yaml")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- 1", "must hold a mapping"), ("", "mapping")]
)
def test_files_that_hold_no_options(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_yaml(tmp_path / "s.yaml")
    with pytest.raises(SettingsError, match="no settings file"):
        read_yaml(tmp_path / "other.yaml")
