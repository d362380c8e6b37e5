"""cmjax: few-step generative models in JAX."""

__version__ = "0.1.0"  # setup.py reads this line
