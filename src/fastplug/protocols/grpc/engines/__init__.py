"""Engines: what carries gRPC. Only the module of an engine imports its library."""
