"""How host and plugin agree: environment, the line, version and protocol. Pure: mappings, bytes and numbers in, decisions out."""
