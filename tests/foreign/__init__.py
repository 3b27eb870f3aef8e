"""Clients that are not vuserd's: MessagePack-RPC as other programs and languages speak it."""
