"""What a walk has: its directories, and the small ones among them, read many at once."""
