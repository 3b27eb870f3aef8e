"""What files of an export hold: parts of them, sums, differences, and what changes."""
