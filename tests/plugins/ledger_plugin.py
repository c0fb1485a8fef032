"""A Python plugin for hosts that have the stubs of ledger.proto, whatever they are written in."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
from tests.plugins.ledger_stubs import ledger_pb2, ledger_pb2_grpc

import fastplug

__all__ = ["Auditor", "Ledger"]

HANDSHAKE = fastplug.HandshakeConfig(1, "LEDGER_PLUGIN", "ledger")


class Auditor(ledger_pb2_grpc.AuditorServicer):
    """Serves on either side; its answers tell who gave them."""

    def Audit(self, request: Any, context: Any) -> Any:  # noqa: N802  the name in the .proto
        return ledger_pb2.Total(amount=request.amount * 2, pid=os.getpid())


class Ledger(ledger_pb2_grpc.LedgerServicer):
    def __init__(self, broker: fastplug.GRPCBroker) -> None:
        self.broker = broker
        self.lock = threading.Lock()
        self.total = 0
        self.offered: list[fastplug.BrokerServer] = []

    def Put(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self.lock:  # several calls at a time
            self.total += request.amount
            total = self.total
        metadata = dict(context.invocation_metadata())
        context.send_initial_metadata((("seen", metadata.get("mark", "")),))
        context.set_trailing_metadata((("size", str(len(request.note))),))
        return ledger_pb2.Total(amount=total, pid=os.getpid())

    def List(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for i in range(request.count):
            yield ledger_pb2.Entry(name=request.name, amount=i)

    def Sum(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        return ledger_pb2.Total(amount=sum(entry.amount for entry in request_iterator), pid=os.getpid())

    def Echo(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for entry in request_iterator:
            yield ledger_pb2.Entry(name=entry.name.upper(), amount=-entry.amount, note=entry.note[::-1])

    def Audited(self, request: Any, context: Any) -> Any:  # noqa: N802
        patience_s = request.entry.amount / 1000 if request.entry.name == "patience" else None
        try:
            with self.broker.dial(request.service_id, timeout_s=patience_s) as channel:
                return ledger_pb2_grpc.AuditorStub(channel).Audit(request.entry)
        except fastplug.BrokerTimeout as error:
            return context.abort(grpc.StatusCode.NOT_FOUND, str(error))

    def Offer(self, request: Any, context: Any) -> Any:  # noqa: N802
        service_id = self.broker.next_id()
        add = ledger_pb2_grpc.add_AuditorServicer_to_server
        self.offered.append(self.broker.accept_and_serve(service_id, lambda server: add(Auditor(), server)))
        return ledger_pb2.Via(service_id=service_id)

    def Print(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.out:
            print(request.out)
        if request.err:
            print(request.err, file=sys.stderr)
        if request.raw:
            os.write(1, request.raw.encode())
            os.write(2, request.raw.encode())
        return ledger_pb2.Nothing()

    def Fail(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name == "raise":
            raise KeyError("x")
        context.set_trailing_metadata((("why-bin", b"\0\1"),))
        return context.abort(grpc.StatusCode[request.name], f"{request.amount} is refused")


class Refusing(grpc.ServerInterceptor):
    """Refuses calls that say that they want it."""

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if ("refuse", "me") not in [tuple(item) for item in handler_call_details.invocation_metadata]:
            return continuation(handler_call_details)
        denied = grpc.StatusCode.PERMISSION_DENIED
        return grpc.unary_unary_rpc_method_handler(lambda request, context: context.abort(denied, "as you wish"))


if __name__ == "__main__":
    options: Any = json.loads(os.environ.get("LEDGER_OPTIONS", "{}"))
    fastplug.serve(
        handshake=HANDSHAKE,
        plugins={"ledger": fastplug.grpc_plugin(ledger_pb2_grpc.add_LedgerServicer_to_server, Ledger)},
        grpc_interceptors=[Refusing()],
        **options,
    )
