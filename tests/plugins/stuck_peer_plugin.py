"""The peer of peer_plugin, but its first Unary holds the GIL in C for STUCK_S seconds, as a long regular expression does."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import grpc
import peer_pb2_grpc
from tests.plugins.peer_plugin import PEER, Peer

import fastplug


class StuckPeer(Peer):
    stuck_s = int(os.environ["STUCK_S"])

    def Unary(self, request: Any, context: grpc.ServicerContext) -> Any:
        seconds, self.stuck_s = self.stuck_s, 0
        if seconds:
            ctypes.PyDLL(None).sleep(seconds)  # a PyDLL keeps the GIL
        return super().Unary(request, context)


if __name__ == "__main__":
    served = fastplug.grpc_plugin(peer_pb2_grpc.add_PeerServicer_to_server, functools.partial(StuckPeer, 1))
    fastplug.serve(plugins={"peer": served}, handshake=PEER)
