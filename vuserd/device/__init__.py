"""The virtio-fs device as its driver sees it: the vhost-user session and FUSE on its rings."""

from vuserd.packages import claim_packages

claim_packages()
