"""The Terraform programs, unmodified, installed from their module paths: a provider of theirs under a Python host, terraform with a
provider in Python. AutoMTLS throughout: terraform uses nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.interop.go_tool import ROOT, installed

pytestmark = [pytest.mark.go, pytest.mark.long]

EXAMPLES = ROOT / "examples" / "terraform"
RUN_TIMEOUT_S = 600


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / program), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    print(ran.stdout, ran.stderr)  # `make interop-full -s` shows it
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the provider says of Terraform's protocol; made by the first test's program."""
    path = tmp_path_factory.mktemp("terraform") / "tfplugin5.binpb"
    provider = installed("github.com/hashicorp/terraform-provider-time", "v0.14.2")
    output = run("drive_time.py", provider, path)
    (path.parent / "output").write_text(output)
    return path


def test_a_provider_of_terraform_is_driven_from_python(descriptors: Path) -> None:
    output = (descriptors.parent / "output").read_text()
    assert "time_static.year: number (computed)" in output
    assert "rfc3339_parse: {'day': 25, 'hour': 23, 'iso_week': 30, 'iso_year': 2023," in output
    planned, applied = (line.partition(": ")[2] for line in output.splitlines() if line.startswith(("planned", "applied")))
    assert planned == applied
    assert "'unix': 1581489373" in applied
    assert descriptors.stat().st_size > 1000


def test_terraform_plans_applies_and_destroys_with_a_provider_in_python(descriptors: Path, tmp_path: Path) -> None:
    output = run("run.py", installed("github.com/hashicorp/terraform", "v1.5.7"), descriptors, tmp_path)
    assert output.count("ok: ") == 8
    assert "Apply complete! Resources: 1 added, 0 changed, 0 destroyed." in output
    assert "Destroy complete! Resources: 1 destroyed." in output
