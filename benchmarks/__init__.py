"""``make bench``: compare vuserd with its alternatives in one run.

``python -m benchmarks`` writes a table and a picture into ``benchmarks/results/``.

- ``profiles``: how much of it a full and a quick run do
- ``corpus``: the files that all contenders read, and the proof that they read them right
- ``contender``, ``contenders``: who takes part, one module each; ``ring`` is the front-end without
  a daemon, the denominator of the daemon's own overhead
- ``tasks``: the kinds of work, measured and proven alike for all
- ``worker``, ``measure``, ``processes``: each task in a process of its own, the rounds in which
  they take turns, and what they used
- ``workloads``: W1 to W6, as lists of tasks; ``crowd`` is W7, ``readiness`` W8; ``daemon`` runs
  what they measure
- ``lines``: the lines to reach, and whether they were
- ``machine``, ``report``, ``chart``: what is written down

``get``, ``inside`` and ``rpc`` beside them are programs of their own: ``make bench-get`` and so on.
"""
