"""What a network service manager tells of its connections, for the probe and for the load balancer."""
