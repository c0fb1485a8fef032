"""The protocols, a folder or module each; none imports another. ``_call``, ``_serve`` and ``_inline`` are shared by those with the fast codec."""
