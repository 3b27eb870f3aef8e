"""The file system behind a session: nodes, paths, operations, and an export's life."""

from vuserd.packages import claim_packages

claim_packages()
