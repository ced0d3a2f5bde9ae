"""A simulated day of many calls through the real processes, with webhooks lost and calls erased; and its judgement."""
