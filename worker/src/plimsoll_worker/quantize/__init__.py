"""Makes a quantized checkpoint of a 16-bit one, calibrated: `python -m plimsoll_worker.quantize`.

    words.py    the tokens that the model is calibrated on: of a text, or its own
    layers.py   layer by layer: what its matrices are given, rounded with that, and what it then answers
    written.py  the folder that this and other engines load: compressed-tensors

Not part of a worker's start: rounding while loading needs no words and takes seconds, this needs both and
loses less.
"""
