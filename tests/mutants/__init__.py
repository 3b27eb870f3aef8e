"""Mutants of the codec and of the virtqueue, and which of them the fast tests notice.

``make mutants`` changes one thing at a time (another operator, another number, a condition turned
round), runs the tests of that module, and expects them to fail. What lives is listed with a reason
in ``docs/mutants.md``.
"""
