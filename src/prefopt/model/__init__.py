"""Models: loading, tree attention, fused log-probs, and the reference policy."""
