"""cmjax: few-step generative models in JAX."""
