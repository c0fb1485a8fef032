"""A host for the tests of the warden. One JSON object on argv says what it does; it prints the pids of all that came of it.

Keys: ``plugins`` (argvs), ``replace`` (kill the warden before the last plugin is watched), ``fork`` (leave a forked child that
lives on), ``then`` ("pause", "exit", "exec").
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys

from fastplug.process.command import CommandRunner
from fastplug.process.warden import warden

plan = json.loads(sys.argv[1])
plugins: list[int] = []
replaced: list[int] = []
runners = []
for index, argv in enumerate(plan["plugins"]):
    if plan.get("replace") and index == len(plan["plugins"]) - 1:
        assert warden.pid is not None
        replaced = [warden.pid]
        pidfd = os.pidfd_open(warden.pid)
        os.kill(warden.pid, signal.SIGKILL)
        select.select([pidfd], [], [])
    runner = CommandRunner(argv)
    runner.start()
    warden.watch(runner)
    runners.append(runner)
    plugins += [int(pid) for pid in runner.stdout.readline().split()]
assert warden.pid is not None
assert warden.pid not in replaced
forked = os.fork() if plan.get("fork") else None
if forked == 0:
    signal.pause()
print(json.dumps({"plugins": plugins, "warden": warden.pid, "forked": forked}), flush=True)
sys.stdin.readline()
if plan["then"] == "pause":
    signal.pause()
elif plan["then"] == "exec":
    os.execv("/bin/sleep", ["sleep", "1000"])
