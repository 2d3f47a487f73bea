"""Recordings of what the engine was told and when: written by the service, read by `lbguard replay` and `tune`."""
