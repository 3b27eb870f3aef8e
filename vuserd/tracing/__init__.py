"""Traces of the FUSE requests that an export's backend is sent: who looks on, and what is kept."""

from vuserd.packages import claim_packages

claim_packages()
