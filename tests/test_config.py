"""Settings: files under variables under flags, and where each value is said to be from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finback.config import Settings, config_path, load_settings, resolve
from finback.errors import ConfigError


def env(path: Path | None = None, **variables: str) -> dict[str, str]:
    return {"FINBACK_CONFIG": "" if path is None else str(path), **variables}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def file(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return file


def test_the_later_counts(write: Any) -> None:
    path = write('threads = 1\ncontext = 100\nport = 1\nhost = "::1"\nprice_input = 0.27\nprice_output = "1.1"\n')
    found = resolve({"port": 3, "host": None}, env(path, FINBACK_CONTEXT="200", FINBACK_PORT="2"))
    settings = found.settings
    assert (settings.threads, settings.context, settings.port, settings.host) == (1, 200, 3, "::1")
    assert (settings.price_input, settings.price_output) == ("0.27", "1.1")
    origins = {name: found.origins[name] for name in ("threads", "context", "port", "host", "batch_tokens")}
    file = str(path)
    assert origins == {
        "threads": file,
        "context": "FINBACK_CONTEXT",
        "port": "--port",
        "host": file,
        "batch_tokens": "default",
    }


def test_every_setting_has_an_origin() -> None:
    found = resolve({}, env())
    assert set(found.origins) == set(Settings.__dataclass_fields__)
    assert set(found.origins.values()) == {"default"}
    assert found.settings == load_settings(env())


def test_where_the_file_is(tmp_path: Path) -> None:
    assert config_path({"XDG_CONFIG_HOME": str(tmp_path)}) is None
    path = tmp_path / "finback" / "config.toml"
    path.parent.mkdir()
    path.write_text("threads = 3")
    assert config_path({"XDG_CONFIG_HOME": str(tmp_path)}) == path
    assert load_settings({"XDG_CONFIG_HOME": str(tmp_path)}).threads == 3
    assert load_settings({"XDG_CONFIG_HOME": str(tmp_path), "FINBACK_CONFIG": ""}).threads is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("threds = 2", "threds"),
        ("threads = ", "TOML"),
        ("threads = true", "threads"),
        ("threads = 1.5", "threads"),
        ("threads = [1]", "threads"),
        ("host = true", "host"),
        ("home = 5", "home"),
        ("port = 70000", "port"),
        ("tls_cert = 'x'", "tls_key"),
        ("log_format = 'xml'", "log_format"),
        ("grace_s = -1", "grace_s"),
    ],
)
def test_bad_files(write: Any, text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load_settings(env(write(text)))


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(env(tmp_path / "nowhere.toml"))


@pytest.mark.parametrize("variables", [{"FINBACK_THREDS": "2"}, {"FINBACK_THREADS": "x"}, {"FINBACK_THREADS": "1.5"}])
def test_bad_variables(variables: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(env(**variables))
    assert next(iter(variables)) in caught.value.message
