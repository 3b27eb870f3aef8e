"""Deliver a file's bytes to a client: inline in a reply, as a sealed memfd, or in its memory."""

from vuserd.packages import claim_packages

claim_packages()
