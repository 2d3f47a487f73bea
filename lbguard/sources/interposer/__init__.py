"""Source `interposer`: streams and targets from the calls of nfqlb that a load balancer makes."""
