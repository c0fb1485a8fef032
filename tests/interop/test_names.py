"""docs/go-plugin.md says of everything that go-plugin exports what it is here: the names come from its own sources."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.interop.go_tool import ROOT, go_plugin_sources, go_tool

pytestmark = pytest.mark.go

DECLARED = re.compile(r"^(?:func|type|var|const) (?:\([^)]*\) )?([A-Z]\w*)", re.MULTILINE)
# A field, a method of an interface, or a name in a block of constants or variables.
INDENTED = re.compile(r"^\t([A-Z]\w*)(?=[ (]|$)", re.MULTILINE)
# Of error and of fmt; and the plugin that its own tests use.
NOT_ITS_OWN = {"Error", "String"}
GO_DOC_TIMEOUT_S = 120


def exported(package: str, sources: Path) -> set[str]:
    """What ``go doc`` shows of a package of go-plugin."""
    shown = subprocess.run(
        [go_tool(), "doc", "-all", package], cwd=sources, capture_output=True, text=True, timeout=GO_DOC_TIMEOUT_S, check=True
    ).stdout
    return {*DECLARED.findall(shown), *INDENTED.findall(shown)} - NOT_ITS_OWN


@pytest.mark.parametrize("package", [".", "./runner"])
def test_every_name_is_in_the_document(package: str) -> None:
    names = exported(package, go_plugin_sources())
    assert {"Client", "ClientConfig", "AutoMTLS"} <= names or {"Runner", "PluginToHost"} <= names
    text = (ROOT / "docs" / "go-plugin.md").read_text()
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", text)) == []
