"""Sockets between host and plugin: where a plugin listens, how a host reaches it."""
