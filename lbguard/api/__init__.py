"""The gRPC interface of the running service."""
