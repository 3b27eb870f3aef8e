"""Where the daemon listens: its sockets, and those of rigs in their network namespaces."""
