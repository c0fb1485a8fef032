"""yamux, as hashicorp/yamux speaks it: many streams over one connection. Pure: bytes in, events and bytes out, the time as an argument.

`frames` has the layout, `stream` the life of one stream as a table (drawn in docs/yamux.md), `session` the whole conversation.
``net/relay_main.py`` gives it a socket and a clock.
"""
