"""One method as a plugin serves it: its codec, its handler, and how fast that has been."""

import types

from fastplug._wire cimport VALUES_MAX, MethodCodec

from fastplug.interfaces import is_asynchronous


cdef class Served:
    def __init__(self, MethodCodec codec not None, function):
        self.codec = codec
        self.function = function
        self.bare, self.owner = (function.__func__, function.__self__) if type(function) is types.MethodType else (function, None)
        self.asynchronous = is_asynchronous(function)
        self.plain = not codec.has_references and not self.asynchronous and len(codec.parameters) <= VALUES_MAX
