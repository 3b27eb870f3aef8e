"""Whole files: one version of each, in chunks, to a file or a stream."""
