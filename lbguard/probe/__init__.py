"""Datapath monitor: pings the other end from the side of the proxy or the target, and reports verdicts."""
