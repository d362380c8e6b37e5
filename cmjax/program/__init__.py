"""What one runs: training, sampling, scoring, planning, and what they read of stored runs."""
