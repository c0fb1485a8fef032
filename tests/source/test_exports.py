"""What `import fastplug` gives, and what it does not load."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.source import tree

# Names that a public module exports for other modules of the package, and the reason why users do not get them from `fastplug`.
_DESCRIPTION = "what protocols are made from; users meet the class that they decorated"
KEPT_INSIDE: dict[str, dict[str, str]] = {
    "fastplug.interfaces": dict.fromkeys(
        ("Interface", "Method", "Parameter", "check_implementation", "interface_of", "interfaces_of", "is_asynchronous"), _DESCRIPTION
    ),
    "fastplug.plugin": dict.fromkeys(("made_servicer", "served_interfaces", "set_up"), _DESCRIPTION),
    "fastplug.life": dict.fromkeys(("REAP_TIMEOUT_S", "PluginLife", "live"), "the base of Client, and what it registers with"),
    "fastplug.process.runner": {"can_detach": "asked by clients; a runner says it by having detach()"},
    "fastplug.secure": {"digest_of": "reads what users write into a SecureConfig"},
    "fastplug.shm.arena": {"numpy_in": "behind Arena.numpy and Client.arena, which users call"},
    "fastplug.deadlines": dict.fromkeys(("UNTIL_NS", "remaining_s"), "read by protocols; users set a deadline"),
}

LATE = ("asyncio", "cryptography", "google.protobuf", "grpc", "msgspec", "multiprocessing", "numpy", "ssl")

FACE = tree.PACKAGE / "__init__.py"


def assigned_literally(path: Path) -> list[str] | None:
    """``__all__`` as it stands in the source; None when there is none. ValueError when it is computed."""
    for node in ast.parse(path.read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "__all__":
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def sources() -> dict[str, str]:
    """name -> module it comes from, as the imports of the face say (they stand there for type checkers)."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(ast.parse(FACE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fastplug")
        for alias in node.names
    }


def in_order(name: str) -> tuple[int, str]:
    """Constants, classes, then the rest: the order that ruff's RUF022 wants too."""
    return (0 if name.isupper() else 1 if name.lstrip("_")[:1].isupper() else 2), name


@pytest.mark.parametrize("path", sorted(tree.PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(tree.PACKAGE)))
def test_all_is_written_by_hand_and_sorted(path: Path) -> None:
    names = assigned_literally(path)
    if path.name == "__init__.py" and names is None and path != FACE:
        return  # a folder without a face of its own
    assert names is not None, f"{path.relative_to(tree.ROOT)} has no __all__"
    expected = sorted(set(names), key=in_order)
    assert names == expected, f"not sorted, or a name twice: expected {expected}"
    module = importlib.import_module(tree.module_name(path))
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"in __all__ of {module.__name__}, but not there: {missing}"


def test_the_face_exports_what_its_modules_export() -> None:
    exported = set(assigned_literally(FACE) or ())
    expected = set()
    for module in sorted(set(sources().values())):
        if module != "fastplug":
            expected |= set(importlib.import_module(module).__all__) - KEPT_INSIDE.get(module, {}).keys()
    submodules = {name for name, module in sources().items() if module == "fastplug"}
    assert exported - {"__version__"} == expected | submodules


def test_the_face_offers_each_name_to_type_checkers() -> None:
    assert set(assigned_literally(FACE) or ()) - {"__version__"} == set(sources())


def test_dir_lists_the_public_names() -> None:
    import fastplug

    assert set(fastplug.__all__) <= set(dir(fastplug))


def test_an_unknown_name_is_an_attribute_error() -> None:
    import fastplug

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = fastplug.no_such_name  # type: ignore[attr-defined]


def test_importing_fastplug_loads_nothing_heavy() -> None:
    program = f"import sys, json, fastplug; print(json.dumps([name for name in {LATE!r} if name in sys.modules]))"
    environment = os.environ | {"PYTHONPATH": str(tree.SOURCES)}
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert not loaded, f"`import fastplug` loads {loaded}:\n{done.stderr}"
