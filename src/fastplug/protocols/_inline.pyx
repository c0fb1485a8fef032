"""Arrays inside the payload: what connections without shared memory use."""

from fastplug._wire cimport ArrayPort, Codec, Decoder, Encoder

from fastplug.errors import CopyRequired

# wire.md, "Arrays": smaller ones travel inline on every transport.
STRICT_BYTES = 1024


cdef class DeferredPort(ArrayPort):
    """Arrays inline in the payload; numpy is imported when the first one appears. ``strict`` refuses those of 1 KiB or more: all are copied."""

    def __init__(self, strict: bool = False):
        self.strict = strict

    cdef ArrayPort _arrays(self):
        if self.arrays is None:
            from fastplug.shm._ndarray import InlineArrays

            self.arrays = InlineArrays()
        return self.arrays

    cdef int put(self, Encoder enc, object array, Codec codec) except -1:
        self._arrays().put(enc, array, codec)
        if self.strict and array.nbytes >= STRICT_BYTES:
            self.arrays.copies, self.arrays.copied_bytes = self.copies, self.copied_bytes      # it will not be sent
            raise CopyRequired(
                f"strict_zero_copy forbids to copy an array of {array.nbytes} bytes, and this transport has no shared memory; "
                "use transport='shm', or leave strict_zero_copy out"
            )
        self.copies = self.arrays.copies
        self.copied_bytes = self.arrays.copied_bytes
        return 0

    cdef object get(self, Decoder dec, Codec codec):
        array = self._arrays().get(dec, codec)
        self.copies = self.arrays.copies
        self.copied_bytes = self.arrays.copied_bytes
        return array

    cdef int skip(self, Decoder dec) except -1:
        return self._arrays().skip(dec)
