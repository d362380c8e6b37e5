"""cmjax: few-step generative models in JAX."""

__version__ = "0.2.0"  # setup.py reads this line
