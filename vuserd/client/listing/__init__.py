"""Listings and walks: how the pages that the daemon sends become records."""
