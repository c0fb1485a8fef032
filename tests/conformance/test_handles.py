"""What dispense() gives: an object that says what it is, behaves like its interface, and stays in its process."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytest
from tests.conformance.conftest import plugin_environment, started
from tests.plugins.extra_api import Extra
from tests.plugins.hooks_plugin import Hooked, Refusing
from tests.plugins.probe_api import Probe
from tests.plugins.probe_plugin import ProbePlugin

import fastplug

PLUGIN = Path(__file__).parents[1] / "plugins" / "probe_plugin.py"


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, ProbePlugin) as client:
        yield client


@pytest.fixture(scope="module")
def probe(client: fastplug.Client) -> Probe:
    return client.dispense(Probe)


def test_repr_says_what_and_where(client: fastplug.Client, probe: Probe, transport: str) -> None:
    for text in (repr(probe), repr(client)):
        assert "ProbePlugin" in text
        assert transport in text
        assert "connected" in text
        assert str(client.pid) in text or transport == "inproc"
    assert "test.probe/1" in repr(probe)
    assert "test.probe/1.add" in repr(probe.add)


def test_help_and_signatures_are_those_of_the_interface(probe: Probe) -> None:
    assert str(inspect.signature(probe.add)) == "(x: 'int', y: 'int' = 10, *, scale: 'float' = 1.0) -> 'float'"
    assert list(inspect.signature(type(probe).add).parameters) == ["self", "x", "y", "scale"]
    assert inspect.getdoc(probe.add) == "The sum.\n\nTimes scale."
    assert type(probe).__doc__ == "For tests of what surrounds a call."
    text = pydoc.plain(pydoc.render_doc(probe))
    assert "add(self, x: 'int', y: 'int' = 10, *, scale: 'float' = 1.0) -> 'float'" in text
    assert "Times scale." in text
    assert probe.add.__name__ == "add"  # type: ignore[attr-defined]
    assert "The sum." in pydoc.plain(pydoc.render_doc(probe.add))


def test_a_handle_is_an_instance_of_its_interface(probe: Probe) -> None:
    assert Probe in type(probe).__mro__
    assert type(probe).__name__ == "Probe"

    @runtime_checkable
    class Adds(Protocol):
        def add(self, x: int) -> float: ...

    assert isinstance(probe, Adds)


def test_an_abc_handle_is_an_instance(start: Callable[..., fastplug.Client]) -> None:
    from tests.plugins.abstract_plugin import Abstract, Concrete

    handle = start(Concrete).dispense(Abstract)
    assert isinstance(handle, Abstract)
    assert handle.square(7) == 49


def test_a_handle_has_the_methods_and_nothing_else(probe: Probe) -> None:
    assert callable(probe.add)
    with pytest.raises(AttributeError):
        probe.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert {name for name in dir(probe) if not name.startswith("_")} == {name for name in vars(Probe) if not name.startswith("_")}


def test_methods_can_be_passed_on(probe: Probe) -> None:
    add = probe.add
    assert [*map(add, range(3), range(3))] == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("what", ["handle", "method", "client"])
@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_is_alive_is_not_copied_and_not_pickled(
    client: fastplug.Client, probe: Probe, what: str, way: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match=r"fastplug\.Spec"):
        way({"handle": probe, "method": probe.add, "client": client}[what])


def test_client_of_leads_back(client: fastplug.Client, probe: Probe) -> None:
    assert fastplug.client_of(probe) is client
    for other in (client, 5, ProbePlugin()):
        with pytest.raises(fastplug.ConfigError, match="client_of"):
            fastplug.client_of(other)


def test_a_handle_is_a_context_manager_that_ends_its_plugin(start: Callable[..., fastplug.Client]) -> None:
    client = start(ProbePlugin)
    handle: Any = client.dispense(Probe)
    with handle as entered:
        assert entered is handle
        assert entered.add(1) == 11.0
    assert client.exited
    with pytest.raises(fastplug.Closed):
        handle.add(1)


def test_the_end_of_with_never_hides_the_error_that_ended_it(transport: str) -> None:
    with pytest.raises(ZeroDivisionError), started(transport, ProbePlugin) as client:
        raise ZeroDivisionError
    assert client.exited


def options(transport: str) -> dict[str, Any]:
    return {"transport": transport} if transport == "inproc" else {"transport": transport, "env": plugin_environment()}


def target(transport: str) -> str:
    return "tests.plugins.probe_plugin:ProbePlugin" if transport == "inproc" else str(PLUGIN)


def test_open_gives_a_handle_for_the_block(transport: str) -> None:
    with fastplug.open(target(transport), Probe, **options(transport)) as probe:
        assert probe.add(1, scale=2.0) == 22.0
        client = fastplug.client_of(probe)
        assert client.transport == transport
    assert client.exited
    with pytest.raises(fastplug.Closed):
        probe.add(1)


def test_open_ends_the_plugin_when_the_interface_is_another(transport: str) -> None:
    with pytest.raises(fastplug.InterfaceMismatch), fastplug.open(target(transport), Extra, **options(transport)):
        pytest.fail("there is no such interface")


def test_a_spec_travels_and_opens(transport: str) -> None:
    spec = pickle.loads(pickle.dumps(fastplug.Spec(target(transport), Probe, options(transport))))
    with spec.open() as probe:
        assert probe.add(2) == 12.0
    with spec.start() as client:
        assert client.dispense(Probe).add(3) == 13.0


def test_an_implementation_that_is_a_context_manager_is_entered_and_left(
    start: Callable[..., fastplug.Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "hooks"
    monkeypatch.setenv("HOOKS_FILE", str(told))
    client = start(Hooked)
    assert told.read_text().split() == ["enter"]
    assert client.dispense(Extra).name() == "entered"
    client.kill()
    assert told.read_text().split() == ["enter", "call", "exit"]


def test_an_implementation_that_cannot_be_set_up_says_why(start: Callable[..., fastplug.Client]) -> None:
    with pytest.raises(fastplug.StartError, match="the database is down"):
        start(Refusing)
