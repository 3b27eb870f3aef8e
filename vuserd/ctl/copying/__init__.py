"""``vuserctl get``: files and trees put in place, each file whole or not at all."""
