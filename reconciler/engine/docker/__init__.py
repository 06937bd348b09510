"""Docker, and what speaks its API, behind the engine protocol."""
