"""The services of one plugin, as its own reflection or the user's descriptors tell them: names, files, objects to call."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2

from fastplug.deadlines import remaining_s
from fastplug.errors import InterfaceMismatch
from fastplug.protocols.grpc.descriptors import Descriptors, Files, files_of
from fastplug.protocols.grpc.reflection import Reflection, is_internal
from fastplug.protocols.grpc.service import Caller, Service, make_service

__all__ = ["Catalog"]


class Catalog:
    """What ``client.service``, ``client.services`` and ``client.descriptors`` ask. Thread-safe.

    Args: ``about`` names the plugin; ``timeout_s`` bounds each question to it.
    """

    def __init__(self, caller: Caller, about: str, timeout_s: float) -> None:
        self._caller = caller
        self._about = about
        self._timeout_s = timeout_s
        self._reflection = Reflection(self._ask)
        self._known: dict[str, Service] = {}  # two threads may make the same one twice; both are good

    def _ask(self, path: str, request: bytes) -> bytes:
        """One question on a stream of its own. Raises RpcError, PluginDied, Closed, DeadlineExceeded."""
        what = "the question for the plugin's services"
        self._caller.check_open(what)
        left_s = remaining_s()
        timeout_s = self._timeout_s if left_s is None else min(left_s, self._timeout_s)
        with self._caller.streams.call(
            path, (request,), timeout_s, translate=lambda status: self._caller.translated(status, what)
        ) as answers:
            return next(answers, b"")

    def names(self) -> list[str]:
        """The application's services."""
        return [name for name in self._reflection.services() if not is_internal(name)]

    def service(self, name: str, descriptors: Descriptors | None) -> Service:
        """The object for a service. Raises InterfaceMismatch, ConfigError, RemoteProtocolError."""
        if descriptors is not None:
            files = files_of(descriptors)
            return make_service(name, files, self._caller, self._about, files.services)
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = make_service(name, self._files(name), self._caller, self._about, self.names)
        return known

    def _files(self, name: str) -> Files:
        files = self._reflection.files(name)
        if files is None:
            known = ", ".join(self.names()) or "none"
            raise InterfaceMismatch(f"the plugin has no service {name!r}; it has: {known}", interface=name)
        return files

    def descriptors(self, name: str) -> Any:
        """The files that describe a service, imports included, as a FileDescriptorSet."""
        found: descriptor_pb2.FileDescriptorSet = self._files(name).file_set()
        return found
