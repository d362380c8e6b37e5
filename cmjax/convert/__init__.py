"""Foreign checkpoints in, weights out: `python -m cmjax.convert FILE --to DIR`.

Nothing that a file holds is executed: pickles are read as data (`pickles`), every size that a file
claims is checked against the bytes there (`tensors`), and what is not understood is an error.
"""
