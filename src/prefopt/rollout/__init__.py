"""Policies one can ask, and samplers that complete prompts."""
