"""What the daemon holds for each user, and how much of it one user may have."""
