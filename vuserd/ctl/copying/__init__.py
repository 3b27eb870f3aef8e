"""``vuserctl get``, its kin and ``load``: files put in place, each file whole or not at all."""
