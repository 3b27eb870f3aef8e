"""The pytest plug-in: fixtures that serve directories, by a daemon of each test process's own."""
