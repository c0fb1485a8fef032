"""Imports point down only. LAYERS is the table of docs/design.md, from the bottom to the top; a new module must be put into it."""

from __future__ import annotations

import ast
import re

import pytest
from tests.source import tree

LAYERS = (
    # words
    (
        "annotation",
        "broker",
        "config",
        "contexts",
        "deadlines",
        "dtypes",
        "errors",
        "interfaces",
        "plugin",
        "presets",
        "protocol",
        "reattach_config",
        "secure",
        "signature",
        "structs",
    ),
    # languages
    ("_wire", "_wire_arrow", "_wire_buffer", "_wire_containers", "_wire_errors", "_wire_scalars", "_wire_words", "yamux"),
    # resources
    ("net", "process", "shm"),
    # agreement
    ("handshake", "protocols"),
    # roles
    ("certificates", "client", "grpc_access", "launch", "life", "reattachment", "server"),
    # faces
    ("", "api", "contrib", "entry"),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

# An import that closes a cycle, and the sentence that says why it has to.
BACK_BECAUSE = {
    ("fastplug.shm._port", "fastplug.shm._ndarray"): "Shared memory works without numpy; its array half is loaded by the first array.",
}

# Bytes, events and the time in, bytes and events out.
PURE = (
    "_wire",
    "_wire_buffer",
    "_wire_containers",
    "_wire_errors",
    "_wire_scalars",
    "_wire_words",
    "handshake",
    "process.hclog",
    "process.lifecycle",
    "yamux",
)
IMPURE = frozenset(
    {
        "_thread",
        "asyncio",
        "ctypes",
        "fcntl",
        "mmap",
        "multiprocessing",
        "os",
        "posix",
        "pty",
        "queue",
        "sched",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "socketserver",
        "ssl",
        "subprocess",
        "tempfile",
        "threading",
        "time",
    }
)

KNOWN = tree.modules()


def room(module: str) -> str:
    """The first name below the package: what the table speaks of."""
    return module.removeprefix("fastplug").lstrip(".").split(".")[0]


def edges(*, for_types: bool = True) -> list[tuple[str, str, str]]:
    """(importing module, imported module, place)."""
    return [
        (module, target, f"{path.relative_to(tree.ROOT)}:{line}")
        for module, paths in KNOWN.items()
        for path in paths
        for line, target in tree.internal_imports(path, KNOWN, for_types=for_types)
    ]


def test_every_module_is_in_the_table() -> None:
    strangers = sorted({module for module in KNOWN if room(module) not in RANK})
    assert not strangers, f"in no layer of LAYERS: {strangers}"


def test_the_design_shows_this_table() -> None:
    text = (tree.ROOT / "docs" / "design.md").read_text().partition("## Layers")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    shown = [{name.strip("/") for name in re.findall(r"`([\w/]+)`", row)} for row in reversed(rows)]
    assert shown == [{room or "__init__" for room in rooms} for rooms in LAYERS]


def test_imports_point_down_only() -> None:
    upward = [
        f"{place}: {module} imports {target}"
        for module, target, place in edges()
        if RANK.get(room(target), 0) > RANK.get(room(module), len(LAYERS))
    ]
    assert not upward, "\n".join(upward)


# What the protocols share: calls over a link, what a plugin announces, what a host dispenses.
SHARED = (
    *("_activity", "_answering", "_call", "_callbacks", "_drawn", "_flight", "_group", "_inline", "_loops", "_pool", "_reading"),
    *("_remote", "_result_stream", "_running", "_serve", "_served", "_session", "_streams", "_tasks", "_told", "_turn", "_waiting"),
    *("handle", "offering"),
)


def protocol_of(module: str) -> str | None:
    """``fast`` for fastplug.protocols.fast.client; None for the package itself and for what all protocols share."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["fastplug", "protocols"] and len(parts) > 2 and parts[2] not in SHARED else None


def test_protocols_do_not_import_each_other() -> None:
    crossing = [
        f"{place}: {module} imports {target}"
        for module, target, place in edges()
        if protocol_of(target) and protocol_of(module) != protocol_of(target) and room(module) == "protocols"
    ]
    assert not crossing, "\n".join(crossing)


def test_there_is_no_cycle() -> None:
    """Of modules that run; two words may name each other in annotations (``if TYPE_CHECKING``)."""
    graph: dict[str, set[str]] = {module: set() for module in KNOWN}
    for module, target, _ in edges(for_types=False):
        if (module, target) not in BACK_BECAUSE:
            graph[module].add(target)
    # What imports nothing of the rest is in no cycle, and neither is what nothing of the rest imports.
    while outside := [m for m in graph if not graph[m] & graph.keys() or not any(m in targets for targets in graph.values())]:
        for module in outside:
            del graph[module]
    assert not graph, "\n".join(f"{module} -> {sorted(targets & graph.keys())}" for module, targets in sorted(graph.items()))


def is_pure(module: str) -> bool:
    inner = module.removeprefix("fastplug.")
    return any(inner == pure or inner.startswith(pure + ".") for pure in PURE)


@pytest.mark.parametrize("module", [module for module in KNOWN if is_pure(module)])
def test_pure_modules_do_not_touch_the_world(module: str) -> None:
    touching = [
        f"{path.relative_to(tree.ROOT)}:{line}: {name}"
        for path in KNOWN[module]
        for line, name in tree.imported(path)
        if name.split(".")[0] in IMPURE
    ]
    assert not touching, "\n".join(touching)


@pytest.mark.parametrize("pure", PURE)
def test_pure_parts_exist(pure: str) -> None:
    """A renamed module must not fall out of the rule unseen."""
    assert any(is_pure(module) and module.startswith(f"fastplug.{pure}") for module in KNOWN)


def test_every_module_evaluates_annotations_lazily() -> None:
    late = []
    for path in sorted(tree.PACKAGE.rglob("*.py")):
        only_a_docstring = len(ast.parse(path.read_text()).body) <= 1
        if not only_a_docstring and "__future__.annotations" not in {name for _, name in tree.imported(path)}:
            late.append(str(path.relative_to(tree.ROOT)))
    assert not late, f"without `from __future__ import annotations`: {late}"
