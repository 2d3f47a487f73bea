"""Recordings of the engine's inputs and their times: written by the service, read by `lbguard replay` and `tune`."""
