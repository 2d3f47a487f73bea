"""The verdict service: server, policy, limits, and the queue to the core."""
