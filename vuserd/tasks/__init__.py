"""Helpers for trio tasks that know nothing of vuserd: budgets, turns, crowds, results of many."""
