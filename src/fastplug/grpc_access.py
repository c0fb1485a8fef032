"""What a client gives beside interfaces when its plugin speaks gRPC: services by reflection, the channel, the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastplug.errors import ConfigError
from fastplug.protocol import ClientProtocol

if TYPE_CHECKING:
    from fastplug.broker import GRPCBroker
    from fastplug.protocols.grpc.descriptors import Descriptors

__all__ = ["GrpcAccess"]


class GrpcAccess:
    """The part of Client that is about gRPC. Thread-safe."""

    @property
    def transport(self) -> str:
        raise NotImplementedError

    def _connected(self) -> ClientProtocol:
        raise NotImplementedError

    def service(self, name: str, *, descriptors: Descriptors | None = None) -> Any:
        """A service of a plugin over gRPC, as an object with the service's methods: no stubs, no .proto.

        The plugin's own reflection tells methods and messages; ``help()`` shows them. ``fastplug.protocols.grpc.service.Service`` says
        what a method takes, gives and raises.

        Args:
            name: full name, ``package.Service``.
            descriptors: for a plugin without reflection: a FileDescriptorSet, its bytes, or modules that protoc generated.

        Raises:
            InterfaceMismatch: the plugin has no such service; which it has.
            ConfigError: no reflection and no ``descriptors``, or no gRPC. RemoteProtocolError: it describes itself malformed.
        """
        return self._over_grpc("catalog").service(name, descriptors)

    def services(self) -> tuple[str, ...]:
        """Full names of the services that ``service`` takes. Raises as ``service``."""
        return tuple(self._over_grpc("catalog").names())

    def descriptors(self, name: str) -> Any:
        """The files that describe a service, imports included, as a protobuf FileDescriptorSet. Raises as ``service``."""
        return self._over_grpc("catalog").descriptors(name)

    @property
    def channel(self) -> Any:
        """A ``grpc.Channel`` to the plugin, for generated stubs; calls on it raise what grpcio raises. It ends with the plugin.

        Raises:
            ConfigError: the plugin does not speak gRPC with this host. PluginDied, Closed.
        """
        return self._over_grpc("channel")

    @property
    def broker(self) -> GRPCBroker:
        """Further connections to the plugin, by number. Raises as ``channel``."""
        found: GRPCBroker = self._over_grpc("broker")
        return found

    def _over_grpc(self, what: str) -> Any:
        found = getattr(self._connected(), what, None)
        if found is None:
            raise ConfigError(
                f"services, channels and brokers need a plugin over gRPC; this one is connected over {self.transport}: "
                "start it with transport='grpc'"
            )
        return found
