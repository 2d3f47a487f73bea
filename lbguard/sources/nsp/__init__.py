"""Source `nsp`: streams and targets from Meridio's registry."""
