"""Who takes part: vuserd, the front-end without a daemon, and what a user would pick instead."""
