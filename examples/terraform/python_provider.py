"""A Terraform provider in Python: files with a content, and the SHA-256 of it. Terraform starts it, and talks to it under AutoMTLS.

    resource "python_file" "motto" {
      path    = "motto.txt"
      content = "plugins in their own processes"
    }

The messages of Terraform's protocol come from what another provider says of itself (drive_time.py writes it into a file).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dynamic import UNKNOWN, pack, unpack

import fastplug

ERROR = 1
Values = dict[str, Any]


def attribute(name: str, **more: bool) -> Values:
    return {"name": name, "type": json.dumps("string").encode(), **more}


# path cannot be changed: it is another file then.
FILE = {
    "version": 0,
    "block": {"attributes": [attribute("path", required=True), attribute("content", required=True), attribute("sha256", computed=True)]},
}


def reporting(handler: Any) -> Any:
    """An exception becomes a diagnostic, which Terraform shows with the resource's name."""

    @functools.wraps(handler)
    def handle(self: Provider, request: Any, context: Any) -> Values:
        try:
            result: Values = handler(self, request, context)
        except (OSError, ValueError) as error:
            return {"diagnostics": [{"severity": ERROR, "summary": f"{type(error).__name__}: {error}"}]}
        return result

    return handle


class Provider:
    """tfplugin5.Provider, for one kind of resource. Methods are called on several threads at a time; they keep no state."""

    def GetSchema(self, request: Any, context: Any) -> Values:
        return {"provider": {"block": {}}, "resource_schemas": {"python_file": FILE}}

    def PrepareProviderConfig(self, request: Any, context: Any) -> Values:
        return {"prepared_config": request.config}

    def Configure(self, request: Any, context: Any) -> Values:
        return {}

    @reporting
    def ValidateResourceTypeConfig(self, request: Any, context: Any) -> Values:
        path = unpack(request.config)["path"]
        if path == "":
            raise ValueError("path must not be empty")
        return {}

    def UpgradeResourceState(self, request: Any, context: Any) -> Values:
        return {"upgraded_state": pack(json.loads(request.raw_state.json))}

    @reporting
    def ReadResource(self, request: Any, context: Any) -> Values:
        """What the file is now; null when it is gone."""
        state = unpack(request.current_state)
        path = Path(state["path"])
        return {"new_state": pack(_state(state["path"], path.read_text()) if path.exists() else None)}

    def PlanResourceChange(self, request: Any, context: Any) -> Values:
        prior, proposed = unpack(request.prior_state), unpack(request.proposed_new_state)
        if proposed is None:  # destroy
            return {"planned_state": pack(None)}
        content = proposed["content"]
        planned = proposed | {"sha256": UNKNOWN if content is UNKNOWN else _state("", content)["sha256"]}
        replaced = prior is not None and prior["path"] != proposed["path"]
        return {
            "planned_state": pack(planned),
            "requires_replace": [{"steps": [{"attribute_name": "path"}]}] if replaced else [],
        }

    @reporting
    def ApplyResourceChange(self, request: Any, context: Any) -> Values:
        prior, planned = unpack(request.prior_state), unpack(request.planned_state)
        if planned is None:
            Path(prior["path"]).unlink(missing_ok=True)
            return {"new_state": pack(None)}
        Path(planned["path"]).write_text(planned["content"])
        return {"new_state": pack(_state(planned["path"], planned["content"]))}

    def Stop(self, request: Any, context: Any) -> Values:
        return {}


def _state(path: str, content: str) -> Values:
    return {"path": path, "content": content, "sha256": hashlib.sha256(content.encode()).hexdigest()}


if __name__ == "__main__":
    descriptors = Path(os.environ["TFPLUGIN_DESCRIPTORS"]).read_bytes()
    provider = fastplug.grpc_service("tfplugin5.Provider", Provider(), descriptors=descriptors)
    fastplug.serve(plugins={"provider": provider}, handshake=fastplug.presets.TERRAFORM)
