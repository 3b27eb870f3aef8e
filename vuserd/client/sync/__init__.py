"""The synchronous client's inside: how it drives procedures, and the pool that threads share."""
