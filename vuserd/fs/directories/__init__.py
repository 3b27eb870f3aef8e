"""What is in directories: read in columns, from one opening or across several."""
