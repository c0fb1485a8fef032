"""The protocols, a folder or module each; none imports another. ``_call`` is what those that use the fast codec share."""
