"""Matrices in fewer bits: how they are kept, rounded to it, and read from checkpoints that are quantized.

form.py      Form: how one matrix is kept; memory for it, and regions of it
rounding.py  numbers and scales of rows of weights
"""
