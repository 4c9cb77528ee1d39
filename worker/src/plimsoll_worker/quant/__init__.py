"""Matrices in fewer bits: how they are kept, rounded to it, and read from checkpoints that are quantized.

form.py      Form: how one matrix is kept; memory for it, and regions of it
rounding.py  numbers and scales of rows of weights, while they are loaded
grids.py     the same by what the inputs of a matrix are, ahead (`plimsoll_worker.quantize`)
error_feedback.py  what rounding a column does to the others
compressed.py      how a checkpoint of such matrices is written
stored.py    matrices that lie packed in a checkpoint
"""
