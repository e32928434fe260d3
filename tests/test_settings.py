"""Four sources, one order; and refusals that name field, value, bound and remedy."""

from pathlib import Path

import pytest

from zimage_studio.errors import InvalidInputError
from zimage_studio.settings import Settings, load_settings


def test_option_then_environment_then_file_then_default(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('port = 1001\nmodel = "file"\nlang = "zh"\nmax_waiting = 3\n')
    environ = {"ZIMAGE_DATA": str(tmp_path), "ZIMAGE_PORT": "1002", "ZIMAGE_MODEL": "environment", "OTHER": "x"}
    settings = load_settings({"port": "1003", "host": None}, environ)
    assert (settings.port, settings.model, settings.lang, settings.max_waiting) == (1003, "environment", "zh", 3)
    assert (settings.host, settings.data) == ("127.0.0.1", tmp_path)


def test_the_data_option_decides_which_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("port = 1001\n")
    assert load_settings({"data": tmp_path}, {"ZIMAGE_DATA": "/nowhere"}).port == 1001


def test_lists_come_in_each_sources_own_way(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('public_hosts = ["a.example", "b.example"]\nmodels = ["/one"]\n')
    assert load_settings({"data": tmp_path}, {}).public_hosts == ("a.example", "b.example")
    assert load_settings({"data": tmp_path, "models": ["/x", "/y"]}, {}).models == (Path("/x"), Path("/y"))
    assert load_settings({"data": tmp_path}, {"ZIMAGE_MODELS": "/x:/y"}).models == (Path("/x"), Path("/y"))
    assert load_settings({"data": tmp_path}, {"ZIMAGE_AUTH": "a:b,c:d"}).auth == ("a:b", "c:d")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": "0"}, ["port", "0", "65535"]),
        ({"port": "7860.5"}, ["port", "7860.5"]),
        ({"port": True}, ["port", "True"]),
        ({"port": "９"}, ["port"]),
        ({"max_waiting": "-1"}, ["max_waiting", "-1", "1000"]),
        ({"share": "perhaps"}, ["share", "perhaps", "true or false"]),
        ({"lang": "fr"}, ["lang", "fr", "en, zh"]),
        ({"host": ""}, ["host"]),
        ({"host": "a\0b"}, ["host"]),
        ({"models": 3}, ["models", "3"]),
        ({"prot": 1}, ["prot", "port"]),
    ],
)
def test_a_refusal_names_field_and_value(tmp_path: Path, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_settings({"data": tmp_path, **options}, {})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["port = ", "prot = 1", "port = nan", "\udcff"])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidInputError):
        load_settings({"data": tmp_path}, {})


def test_passwords_are_not_in_the_repr() -> None:
    assert "secret" not in repr(Settings(auth=("ana:secret",)))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.0.0.2", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("127.evil.example", False)],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert Settings(host=host).loopback is loopback
