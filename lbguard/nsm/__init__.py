"""Connection events of a network service manager, for the probe and for the load balancer."""
