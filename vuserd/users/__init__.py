"""What each user makes the daemon hold, and how much of it one user may have."""
