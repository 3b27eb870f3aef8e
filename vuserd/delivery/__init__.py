"""How a file's bytes reach a client: inline in a reply, as a sealed memfd, in its own memory."""

from vuserd.packages import claim_packages

claim_packages()
