"""From token trees to batches: packed rows, positions, and the flat columns losses read."""
