"""Docker, and engines that speak its API."""
