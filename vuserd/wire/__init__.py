"""What both ends of the socket share: its address, the codec, and descriptors beside bytes."""
