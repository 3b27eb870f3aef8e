"""The file system behind a session: nodes, paths, operations, and an export's life."""
