"""A tree of an export as one archive: its names in order, in a format, with their contents."""
