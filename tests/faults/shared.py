"""Faults that are shown on the fake backend and on the real ones."""

from tests.faults.catalogue import fault

KILLED = fault(
    "killed-in-a-call",
    done="the backend's process is killed in the middle of a call",
    must="The next backend serves the call; the caller sees only the delay.",
)
EXHAUSTED = fault(
    "out-of-descriptors",
    done="the backend has EMFILE or ENFILE, as it has a descriptor open for each node it is asked"
    " to know",
    must="Nodes that no call uses are forgotten and the call is made again: the caller sees nothing"
    " of it.",
)
