"""All that is below a directory, each entry with its node in use until it is delivered."""
