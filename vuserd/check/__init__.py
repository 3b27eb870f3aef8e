"""``vuserd check``: whether all that serving needs is there, tried out rather than looked up."""
