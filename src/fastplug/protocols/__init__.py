"""The protocols, a folder or module each; none imports another. those with the fast codec share ``_call``, ``_serve`` and the like."""
