"""The one loop: observe, plan, execute, remember."""
