"""What other tools load: each module is one tool's, and imports it."""
