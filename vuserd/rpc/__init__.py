"""The server of the MessagePack-RPC: connections, methods, and what each user may have."""
