"""What is observed of the engine and of health, and the snapshots that decisions are made from."""
