"""``vuserctl``, the command on top of the client libraries; only this room prints."""
