"""Everything that a backend may do to its front-end, and what has to become of it.

Each test here shows one fault, named by :func:`tests.faults.catalogue.fault`. ``docs/faults.md``
is the table of them all: ``python -m tests.faults`` writes it, and a test fails when it is stale.
"""
