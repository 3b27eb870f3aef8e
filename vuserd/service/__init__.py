"""The process's surroundings: the service manager, the journal and the standard streams."""
