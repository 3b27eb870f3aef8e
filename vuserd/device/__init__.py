"""The virtio-fs device as its driver sees it: the vhost-user session and FUSE on its rings."""
