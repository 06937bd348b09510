"""The container engine: the protocol, and Docker behind it."""
