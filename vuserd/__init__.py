"""A vhost-user front-end without QEMU: host files by virtio-fs, over MessagePack-RPC."""

__version__ = "0.1.0"
