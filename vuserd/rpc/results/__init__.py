"""What methods return, as it goes over the wire."""
