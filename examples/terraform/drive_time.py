"""Drives a Terraform provider that nobody changed, hashicorp/time, without Terraform, stubs or .proto files.

    python drive_time.py PROVIDER [DESCRIPTORS]

PROVIDER is the program, from `go install github.com/hashicorp/terraform-provider-time@v0.14.2`. With DESCRIPTORS, what the provider says of
its own protocol is written into that file, for python_provider.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dynamic import UNKNOWN, pack, unpack

import fastplug

SERVICE = "tfplugin5.Provider"


def check(response: Any) -> Any:
    """The response, unless it has errors in it: Terraform's own way to report them."""
    errors = [f"{one.summary} {one.detail}".strip() for one in response.diagnostics if one.severity == 1]
    if errors:
        raise SystemExit("the provider says: " + "; ".join(errors))
    return response


def time_of(provider: Any, text: str) -> dict[str, Any]:
    """A function of the provider."""
    answer = provider.CallFunction(name="rfc3339_parse", arguments=[pack(text)])
    if answer.HasField("error"):
        raise SystemExit(f"rfc3339_parse: {answer.error.text}")
    found: dict[str, Any] = unpack(answer.result)
    return found


def create(provider: Any, schema: Any, kind: str, **given: Any) -> tuple[Any, Any]:
    """Plans and applies one new resource: (planned, applied)."""
    attributes = schema.resource_schemas[kind].block.attributes
    config = {one.name: given.get(one.name) for one in attributes}
    proposed = {one.name: UNKNOWN if one.computed and given.get(one.name) is None else given.get(one.name) for one in attributes}
    check(provider.ValidateResourceTypeConfig(type_name=kind, config=pack(config)))
    resource = {"type_name": kind, "prior_state": pack(None), "config": pack(config)}
    plan = check(provider.PlanResourceChange(**resource, proposed_new_state=pack(proposed)))
    applied = check(provider.ApplyResourceChange(**resource, planned_state=plan.planned_state, planned_private=plan.planned_private))
    return unpack(plan.planned_state), unpack(applied.new_state)


def main(program: str, descriptors: str | None = None) -> None:
    with fastplug.start([program], handshake=fastplug.presets.TERRAFORM, auto_mtls=True) as client:
        if descriptors is not None:
            Path(descriptors).write_bytes(client.descriptors(SERVICE).SerializeToString())
        provider = client.service(SERVICE)
        schema = check(provider.GetSchema())
        print("resources:", ", ".join(sorted(schema.resource_schemas)))
        print("functions:", ", ".join(sorted(schema.functions)))
        for attribute in schema.resource_schemas["time_static"].block.attributes:
            print(f"  time_static.{attribute.name}: {json.loads(attribute.type)}{' (computed)' if attribute.computed else ''}")
        print("rfc3339_parse:", time_of(provider, "2023-07-25T23:43:16Z"))
        check(provider.Configure(terraform_version="1.5.7", config=pack({})))
        planned, applied = create(provider, schema, "time_static", rfc3339="2020-02-12T06:36:13Z")
        print("planned:", planned)
        print("applied:", applied)


if __name__ == "__main__":
    main(*sys.argv[1:])
