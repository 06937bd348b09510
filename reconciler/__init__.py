"""Keeps a Docker host's agent sandboxes exactly as a YAML file says."""

__version__ = "0.1.0"
