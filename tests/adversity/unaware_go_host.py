"""A host that knows go-plugin and not fastplug: sets the cookie, starts its plugin with the whole environment it has, reads the line.

Prints the line, ends the plugin, and exits with 0 if field 5 says grpc. argv: cookie key, cookie value, and the plugin's argv.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

key, value, *argv = sys.argv[1:]
environment = {**os.environ, key: value, "PLUGIN_PROTOCOL_VERSIONS": "1", "PLUGIN_MIN_PORT": "10000", "PLUGIN_MAX_PORT": "25000"}
with tempfile.TemporaryDirectory() as folder:
    environment["PLUGIN_UNIX_SOCKET_DIR"] = folder
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True, close_fds=False) as plugin:
        assert plugin.stdout is not None
        line = plugin.stdout.readline().rstrip("\n")
        print(line, flush=True)
        plugin.terminate()
sys.exit(0 if line.split("|")[4:5] == ["grpc"] else 1)
