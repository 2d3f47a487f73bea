"""Source `kubernetes`: streams and targets from objects of the Kubernetes API."""
