"""Performance budgets, measured as ratios to floors of the same run."""
