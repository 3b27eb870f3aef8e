"""What the synchronous client is made of: how it waits, and what it does with whole files."""
