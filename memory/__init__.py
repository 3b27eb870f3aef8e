"""Memory shared with the backend: memfd regions, buffers cut from them, virtqueues laid in them.

Nothing here waits or opens a socket.
"""
