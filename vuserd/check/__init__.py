"""``vuserd check``: try out whether all that serving needs is there."""

from vuserd.packages import claim_packages

claim_packages()
