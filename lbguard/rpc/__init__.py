"""gRPC connections: channels, TLS, SPIFFE certificates, unix sockets."""
