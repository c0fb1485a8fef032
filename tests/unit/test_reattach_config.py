"""How running plugins are named: the JSON of TF_REATTACH_PROVIDERS."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastplug.errors import ConfigError
from fastplug.reattach_config import PID_MAX, VERSION_MAX, ReattachConfig, format_reattach, parse_reattach

configs = st.builds(
    ReattachConfig,
    st.sampled_from(["grpc", "netrpc"]),
    st.integers(0, VERSION_MAX),
    st.sampled_from(["unix", "tcp"]),
    st.text(min_size=1).filter(lambda text: "\0" not in text),
    st.integers(0, PID_MAX),
    st.booleans(),
)


def test_the_form_is_terraforms() -> None:
    config = ReattachConfig("grpc", 5, "unix", "/tmp/plugin1", 12, test=True)
    text = format_reattach({"registry.terraform.io/acme/time": config})
    assert json.loads(text) == {
        "registry.terraform.io/acme/time": {
            "Protocol": "grpc",
            "ProtocolVersion": 5,
            "Pid": 12,
            "Test": True,
            "Addr": {"Network": "unix", "String": "/tmp/plugin1"},
        }
    }


@given(st.dictionaries(st.text(), configs, max_size=4))
def test_what_is_written_is_read_again(plugins: dict[str, ReattachConfig]) -> None:
    assert parse_reattach(format_reattach(plugins)) == plugins


def test_members_that_are_missing_are_as_in_go() -> None:
    found = parse_reattach('{"a": {"Addr": {"Network": "tcp", "String": "127.0.0.1:1"}, "Later": 1}}')
    assert found == {"a": ReattachConfig("netrpc", 0, "tcp", "127.0.0.1:1")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a JSON object of names and plugins"),
        ("[" * 100_000, "must be a JSON object of names and plugins"),
        ("[]", r"a reattach text must be a JSON object, got \[\]"),
        ('{"a": 1}', "a running plugin must be a JSON object, got 1"),
        ('{"a": {"Protocol": "grpc"}}', "Addr must be a JSON object, got None"),
        ('{"a": {"Protocol": "fast", "Addr": {}}}', "over grpc or netrpc, not over 'fast'"),
        ('{"a": {"Protocol": "grpc", "Addr": {"Network": "udp", "String": "x"}}}', "got 'udp' 'x'"),
        ('{"a": {"Protocol": "grpc", "Addr": {"Network": "unix", "String": 7}}}', "got 'unix' 7"),
        ('{"a": {"Protocol": "grpc", "Pid": true, "Addr": {"Network": "unix", "String": "/x"}}}', "pid .* got True"),
        ('{"a": {"Protocol": "grpc", "Pid": -1, "Addr": {"Network": "unix", "String": "/x"}}}', "pid .* got -1"),
        ('{"a": {"Protocol": "grpc", "ProtocolVersion": 1e9, "Addr": {"Network": "unix", "String": "/x"}}}', "protocol_version"),
        ('{"a": {"Protocol": "grpc", "Test": 1, "Addr": {"Network": "unix", "String": "/x"}}}', "Test .* true or false, got 1"),
        (" " * 2_000_000, "2000000 characters is none"),
    ],
)
def test_what_is_no_running_plugin(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        parse_reattach(text)
    assert len(str(refused.value)) < 600
