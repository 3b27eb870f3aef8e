"""The lane of a session's FUSE requests: slots, batches, what waits, what is overdue, what hung."""
