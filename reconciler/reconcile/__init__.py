"""Reconcile sandboxes: queue, workers, controller, executor and what they keep track of."""
