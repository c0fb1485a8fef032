"""Terraform plans, applies and destroys with a provider in Python.

    python run.py TERRAFORM DESCRIPTORS [FOLDER]

TERRAFORM is the program, DESCRIPTORS what drive_time.py wrote. Works in FOLDER, or in a temporary one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = "example.com/fastplug/python"
# A watchdog: each step starts the provider once or twice.
STEP_TIMEOUT_S = 120

CONFIGURATION = """\
terraform {{
  required_providers {{
    python = {{ source = "{source}" }}
  }}
}}

resource "python_file" "motto" {{
  path    = "motto.txt"
  content = "{content}"
}}

output "sha256" {{
  value = python_file.motto.sha256
}}
"""


class Terraform:
    """Terraform in one folder, with the Python provider instead of one from a registry."""

    def __init__(self, program: str, descriptors: str, folder: Path) -> None:
        self.program = str(Path(program).resolve())
        self.folder = folder
        provider = folder / "provider" / "terraform-provider-python"
        provider.parent.mkdir()
        provider.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "python_provider.py"}"\n')
        provider.chmod(0o755)
        settings = folder / "terraform.rc"
        settings.write_text(f'provider_installation {{\n  dev_overrides {{ "{SOURCE}" = "{provider.parent}" }}\n  direct {{}}\n}}\n')
        self.environment = {
            **os.environ,
            "TF_CLI_CONFIG_FILE": str(settings),
            "TFPLUGIN_DESCRIPTORS": str(Path(descriptors).resolve()),
            "CHECKPOINT_DISABLE": "1",
            "TF_IN_AUTOMATION": "1",
        }

    def configure(self, content: str) -> None:
        (self.folder / "main.tf").write_text(CONFIGURATION.format(source=SOURCE, content=content))

    def __call__(self, *arguments: str) -> str:
        command = [self.program, *arguments, *([] if arguments[0] == "show" else ["-no-color"])]
        more = {"cwd": self.folder, "env": self.environment, "timeout": STEP_TIMEOUT_S}
        ran = subprocess.run(command, check=False, capture_output=True, text=True, **more)
        print(f"$ terraform {' '.join(arguments)}", ran.stdout, ran.stderr, sep="\n")
        if ran.returncode:
            raise SystemExit(f"terraform {arguments[0]} ended with exit code {ran.returncode}")
        return ran.stdout


def check(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"not as it should be: {what}")
    print(f"ok: {what}")


def walk(terraform: Terraform) -> None:
    """Plan, apply, change, drift, destroy."""
    motto = terraform.folder / "motto.txt"
    terraform.configure("plugins in their own processes")
    check("1 to add" in terraform("plan"), "the plan has one file to add")
    check(not motto.exists(), "a plan writes nothing")
    output = terraform("apply", "-auto-approve")
    digest = hashlib.sha256(motto.read_bytes()).hexdigest()
    check(digest in output, "apply has written the file, and its digest is an output")
    check("No changes" in terraform("plan"), "nothing is left to do")
    terraform.configure("and each in its own language")
    terraform("apply", "-auto-approve")
    check(motto.read_text() == "and each in its own language", "a change is applied")
    motto.write_text("somebody else was here")
    check("1 to change" in terraform("plan"), "a file that was changed by somebody else is seen")
    terraform("destroy", "-auto-approve")
    check(not motto.exists(), "destroy has removed the file")
    state = json.loads((terraform.folder / "terraform.tfstate").read_text())
    check(state["resources"] == [], "the state is empty")


def main(program: str, descriptors: str, folder: str | None = None) -> None:
    if folder is not None:
        walk(Terraform(program, descriptors, Path(folder).resolve()))
        return
    with tempfile.TemporaryDirectory() as temporary:
        walk(Terraform(program, descriptors, Path(temporary)))


if __name__ == "__main__":
    main(*sys.argv[1:])
