"""Desired state and memory: the manifest that users write, the database that remembers."""
