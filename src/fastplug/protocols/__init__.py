"""The protocols, a folder or module each; none imports another. ``_call``, ``_serve``, ``_inline`` belong to those with the fast codec."""
