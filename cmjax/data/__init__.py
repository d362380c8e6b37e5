"""Where images come from: sources by index, batches by step."""
