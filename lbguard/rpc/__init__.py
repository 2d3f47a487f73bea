"""gRPC plumbing: channels, TLS, SPIFFE, unix sockets."""
