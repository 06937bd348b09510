"""The loop: queue, workers, controller, executor, retries."""
