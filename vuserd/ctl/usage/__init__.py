"""The grammar of ``vuserctl``: its commands by kind, their arguments, help and usage errors."""
