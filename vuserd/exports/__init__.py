"""An export's life: its directory, its backend and the next one, and the table of all exports."""

from vuserd.packages import claim_packages

claim_packages()
