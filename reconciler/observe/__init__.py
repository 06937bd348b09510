"""Observe the engine and the health of sandboxes, and build snapshots for decisions."""
