"""The daemon's numbers, in Prometheus' text format."""
