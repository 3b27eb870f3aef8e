"""The daemon's configuration: its model, and how command lines and files are read into it."""
