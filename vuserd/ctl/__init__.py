"""``vuserctl``: what a person types, on the client libraries; nothing else here prints."""
