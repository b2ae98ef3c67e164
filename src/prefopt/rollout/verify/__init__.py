"""Answers that can be checked: mathematics, instructions, code."""
