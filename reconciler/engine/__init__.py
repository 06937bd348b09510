"""What runs containers: the protocol, and Docker behind it."""
