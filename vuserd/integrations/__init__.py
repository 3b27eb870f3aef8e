"""What other tools load: each module or folder is for one tool, and imports it."""
