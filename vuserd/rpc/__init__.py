"""The daemon's MessagePack-RPC: the codec, the server, its connections and its methods."""
