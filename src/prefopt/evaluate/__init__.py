"""What a model does on held-out data, each figure with its interval; and the gate that says whether it may ship."""
