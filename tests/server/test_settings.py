"""What a server may be told, and how it says that it was told nonsense. Keys never stand in what it says."""

from pathlib import Path

import pytest

from fusionroute.errors import SettingsError
from fusionroute.server.settings import KEY_VARIABLE, ServerSettings


@pytest.fixture(autouse=True)
def _no_key_of_whoever_runs_this(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def test_by_default_only_this_machine_may_ask_and_nothing_is_open() -> None:
    settings = ServerSettings()
    assert settings.host == "127.0.0.1"
    assert settings.cors == ()
    assert settings.allowed_hosts == ()
    assert settings.api_keys == ()
    assert not settings.log_prompts
    assert settings.max_body == 4 * 2**20


@pytest.mark.parametrize(("size", "found"), [("4MiB", 2**22), ("1k", 1024), (77, 77), ("77", 77)])
def test_sizes_are_bytes(size: str | int, found: int) -> None:
    assert ServerSettings.parse({"max_body": size}).max_body == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prot": 1}, "did you mean 'port'"),
        ({"port": 70000}, "port: .*less than or equal to 65535"),
        ({"max_body": "much"}, "max_body: a number of bytes above 0 .* .got 'much'."),
        ({"max_body": 0}, "max_body: a number of bytes above 0"),
        ({"cache_limit": "much"}, "cache_limit: a number of bytes"),
        ({"time_limit": 0}, "time_limit: .*greater than 0"),
        ({"time_limit": float("inf")}, "time_limit: .*finite"),
        ({"grace": -1}, "grace"),
        ({"max_batch": 0}, "max_batch"),
        ({"prefill_chunk": 0}, "prefill_chunk: .*greater than 0"),
        ({"prefix_reuse": "perhaps"}, "prefix_reuse"),
        ({"max_waiting": -1}, "max_waiting"),
        ({"name": "a/b"}, "name"),
        ({"host": ""}, "host"),
        ({"allowed_hosts": ["https://a.example"]}, "allowed_hosts.*without scheme, port and path"),
        ({"allowed_hosts": ["a.example:80"]}, "allowed_hosts.*without scheme, port and path"),
        ({"allowed_hosts": [""]}, "allowed_hosts"),
    ],
)
def test_nonsense_is_told_by_name(options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        ServerSettings.parse(options)
    assert "\n" not in str(caught.value)


def test_keys_come_from_the_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("# who may ask\nfirst-key  # of the lab\n\n  second-key\nfirst-key\n")
    assert ServerSettings.parse({"api_key_file": path}).api_keys == ("first-key", "second-key")
    monkeypatch.setenv(KEY_VARIABLE, "third-key\n")
    assert ServerSettings.parse({"api_key_file": str(path)}).api_keys == ("first-key", "second-key", "third-key")
    assert ServerSettings().api_keys == ("third-key",)
    monkeypatch.setenv(KEY_VARIABLE, " ")
    assert ServerSettings(api_keys=("in-code",)).api_keys == ("in-code",)


def test_keys_stand_in_nothing_that_is_printed_or_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "very-secret")
    settings = ServerSettings()
    assert settings.api_keys == ("very-secret",)
    for said in (repr(settings), str(settings), settings.to_yaml(), settings.model_dump_json()):
        assert "secret" not in said


@pytest.mark.parametrize(
    "keys", [["very secret"], ["very-secrèt"], ["very-secret\x00"], [""], ["very-secret", 5], {"very-secret": 1}, 7]
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(keys: object) -> None:
    with pytest.raises(SettingsError, match=r"an API key consists of visible ASCII|api_keys is a list") as caught:
        ServerSettings.parse({"api_keys": keys})
    assert "secr" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read .No such file"), (b"# nobody\n\n", "holds no key"), (b"\xff\xfe", "cannot be read .it is")],
)
def test_a_key_file_that_gives_no_key_is_an_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        ServerSettings.parse({"api_key_file": path})


def test_origins_are_a_list_or_one() -> None:
    assert ServerSettings.parse({"cors": "https://a.example"}).cors == ("https://a.example",)
    assert ServerSettings.parse({"cors": ["*"]}).cors == ("*",)


def test_hosts_are_a_list_or_one_and_written_as_they_are_compared() -> None:
    assert ServerSettings.parse({"allowed_hosts": "A.Example."}).allowed_hosts == ("a.example",)
    assert ServerSettings.parse({"allowed_hosts": ["::1", "[::2]", "*"]}).allowed_hosts == ("[::1]", "[::2]", "*")
