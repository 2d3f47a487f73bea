"""The whole chain in network namespaces, with real packets."""
