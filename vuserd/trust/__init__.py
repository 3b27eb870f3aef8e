"""Which users the daemon trusts: with the paths that it opens, and with its own memory."""
