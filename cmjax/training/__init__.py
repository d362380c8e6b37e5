"""The train step: gradients, optimizers, averages, accumulation over microbatches."""
