"""What all clients have in common: it waits for nothing, and the clients drive it."""
