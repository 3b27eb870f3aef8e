"""The file system behind a session: nodes, paths, operations, listings and trees."""

from vuserd.packages import claim_packages

claim_packages()
