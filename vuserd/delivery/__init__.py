"""How a file's bytes reach a client: inline in a reply, as a sealed memfd, in its own memory."""
