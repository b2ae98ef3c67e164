"""Training: one loop for every method, and what it stands on."""
