"""The driver of a virtio-fs device: the vhost-user session, and FUSE requests on its rings."""

from vuserd.packages import claim_packages

claim_packages()
