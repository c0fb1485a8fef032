"""TLS in the relay process: bytes in, bytes out, without a socket."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastplug.net.relay_loop import BUFFER_BYTES, Piece

if TYPE_CHECKING:
    import ssl

    from fastplug.config import Tls

__all__ = ["Refused", "TlsFilter"]


class Refused(Exception):
    """TLS failed; the text is the sentence for the user."""


class TlsFilter:
    """TLS over nothing: bytes in, bytes out."""

    def __init__(self, tls: Tls, *, server: bool) -> None:
        import ssl

        from fastplug.net import tls as net_tls

        self._ssl, self._module = ssl, net_tls
        self._tls, self._server = tls, server
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = net_tls.context(tls, server=server)
        self._object: ssl.SSLObject = context.wrap_bio(self._in, self._out, server, None if server else tls.server_name)
        self.established = False
        self.ended = False
        """The peer has said that it sends no more."""
        self.heard = False
        """The peer has sent anything at all."""
        self._trusted = server
        """The peer is known to have accepted this side: under TLS 1.3 a client learns that only from the first bytes it is sent."""

    @property
    def trusted(self) -> bool:
        """Whether both sides accepted each other, as far as can be known."""
        return self.established and self._trusted

    def received(self, data: Piece | None) -> Iterator[bytes]:
        """The plain bytes in what the peer sent; b"" is its end, None begins the handshake. Raises Refused."""
        if data:
            self.heard = True
            self._in.write(data)
        elif data is not None:
            self._in.write_eof()
        try:
            if not self.established:
                self._object.do_handshake()
                self._module.check_peer(self._tls, self._object)
                self.established = True
            while plain := self._object.read(BUFFER_BYTES):
                self._trusted = True
                yield plain
            self.ended = True
        except self._ssl.SSLWantReadError:
            return
        except self._ssl.SSLZeroReturnError:
            self.ended = True
        except (self._ssl.SSLError, OSError) as error:
            if self.trusted and isinstance(error, self._ssl.SSLEOFError):
                self.ended = True  # without close_notify, as Go's http2 often ends: the message layer knows what is missing
                return
            raise Refused(self._module.refusal(error, server=self._server)) from error

    def send(self, data: Piece) -> bool:
        """Encrypts; the result is in ``outgoing``. False: nothing more can be sent, as a rule because the peer has ended."""
        try:
            self._object.write(data)
        except self._ssl.SSLError:
            return False
        return True

    def finish(self) -> None:
        """Says that no more will be sent."""
        if self.established:
            with contextlib.suppress(self._ssl.SSLError):  # WANT_READ: the peer's own is not waited for
                self._object.unwrap()

    def timed_out(self) -> str:
        """The sentence for a handshake that takes too long."""
        return self._module.refusal(TimeoutError(), server=self._server)

    def outgoing(self) -> bytes:
        """What is to be sent to the peer now."""
        return self._out.read()
