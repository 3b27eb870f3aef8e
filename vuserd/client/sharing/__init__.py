"""How threads share clients: each call has one for itself."""
