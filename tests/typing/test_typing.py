"""A wrong use is a type error, a right one is not: in mypy --strict and in pyright.

pyrightconfig.json has pyright's settings. Each expected error carries an ignore comment for each checker. Both are told to report
comments that they do not need, and pyright not to look at mypy's: so no output means that each found every mistake, and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# What a user would write: the uses and mistakes above, and the real plugin programs of the tests.
PLUGINS = ROOT / "tests" / "plugins"
FILES = [
    *(HERE / name for name in ("api.py", "accepted.py", "refused.py")),
    *sorted(PLUGINS.glob("*_api.py")),
    # what protoc generates has no types, and what is derived from it none that could be checked
    *sorted(path for path in PLUGINS.glob("*_plugin.py") if "_pb2" not in path.read_text()),
]
# A watchdog: from a cold start pyright takes about ten seconds.
TIMEOUT_S = 300.0


def run(*command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MYPYPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "FORCE_COLOR": "0"}
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_mypy_accepts_and_refuses_what_it_should(tmp_path: Path) -> None:
    options = [
        "--strict",
        "--warn-unused-ignores",
        "--explicit-package-bases",
        "--namespace-packages",
        "--config-file=",
        "--no-error-summary",
    ]
    checked = run("mypy", *options, f"--cache-dir={tmp_path}", *map(str, FILES))
    assert checked.stdout.splitlines() == []
    assert (checked.returncode, checked.stderr) == (0, "")


def test_pyright_accepts_and_refuses_what_it_should() -> None:
    checked = run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(HERE))
    found = json.loads(checked.stdout)
    shown = [
        f"{one['file']}:{one['range']['start']['line'] + 1}: {one['message']} [{one.get('rule', '')}]"
        for one in found["generalDiagnostics"]
    ]
    assert shown == []
    assert found["summary"]["filesAnalyzed"] >= len(FILES)
