# Errors on the wire.

from fastplug._wire_buffer cimport Decoder, Encoder

# The payload of FRAME_ERROR (wire.md, "Errors"), from the start; of a plain one when this one cannot be encoded.
cdef int encode_error(Encoder enc, object error) except -1
cdef object decode_error(Decoder dec, str method, str raised_by=*)   # -> fastplug.errors.RemoteError (never raises it)
