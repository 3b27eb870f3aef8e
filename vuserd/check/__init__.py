"""``vuserd check``: try out whether all that serving needs is there."""
