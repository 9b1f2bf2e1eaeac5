"""Where keys come from, what is refused, and that no message shows one."""

import pytest

from octavo import env
from octavo.cli.flags import parse_serve
from octavo.errors import ConfigError


@pytest.fixture(autouse=True)
def no_api_key(monkeypatch):
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)


def keys(*argv: str) -> list[str]:
    return parse_serve(list(argv))[1].api_key


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_serve(list(argv))
    return str(caught.value)


def test_flag_and_file_add_up(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# two teams\nsecret-a\n\n  secret-b \nsecret-c\n")
    assert keys("--api-key-file", str(file)) == ["secret-a", "secret-b", "secret-c"]
    assert keys("--api-key", "mine", "secret-b", "--api-key-file", str(file)) == ["mine", "secret-b", "secret-a", "secret-c"]


def test_variable_is_a_list_and_counts_where_nothing_else_is_given(monkeypatch, tmp_path):
    monkeypatch.setenv("OCTAVO_API_KEY", "one, two,,")
    assert keys() == ["one", "two"] and env.api_key() == "one"
    file = tmp_path / "keys"
    file.write_text("three")
    assert keys("--api-key-file", str(file)) == ["three"]


def test_sources_without_a_key_do_not_open_the_server(monkeypatch, tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("# none yet\n\n")
    assert "holds no key" in refused("--api-key-file", str(empty))
    assert "No such file" in refused("--api-key-file", str(tmp_path / "missing"))
    assert "directory" in refused("--api-key-file", str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused("--api-key-file", str(tmp_path / "binary"))
    monkeypatch.setenv("OCTAVO_API_KEY", " , ")
    assert "holds no key" in refused()


@pytest.mark.parametrize("key", ["two words", "f\u00fcrst", "tab\there", "new\nline"])
def test_keys_that_no_header_carries_are_refused_unseen(key):
    message = refused("--api-key", "good", key)
    assert "key 2 of 2" in message and key not in message


def test_key_of_the_wrong_type_is_refused_unseen(tmp_path):
    file = tmp_path / "octavo.yaml"
    file.write_text("api-key: [first, 123456]\n")
    message = refused("--config", str(file))
    assert "api-key" in message and "quotes" in message and "123456" not in message
