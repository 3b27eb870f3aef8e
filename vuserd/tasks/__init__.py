"""Helpers for trio tasks that know nothing of vuserd: budgets, turns, workers, a hub."""
