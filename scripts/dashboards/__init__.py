"""The dashboards as data: one module each, and how they become Grafana's JSON."""
