"""The daemon's metrics, in Prometheus' text format."""
