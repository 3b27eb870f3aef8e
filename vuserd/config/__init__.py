"""What the daemon is to do: the model, and how command lines and files are read into it."""
