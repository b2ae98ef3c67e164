"""Recipes, stages and records: what is done, in which order, and what made what."""
