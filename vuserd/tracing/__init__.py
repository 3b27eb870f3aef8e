"""Trace the FUSE requests that an export sends to its backend, for the clients that ask."""

from vuserd.packages import claim_packages

claim_packages()
