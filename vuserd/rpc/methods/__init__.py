"""The methods of the RPC: what each takes, what it does, and what it returns."""
