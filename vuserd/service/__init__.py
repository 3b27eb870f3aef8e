"""What surrounds the process: the service manager, the journal and the standard streams."""
