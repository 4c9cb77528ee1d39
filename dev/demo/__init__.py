"""`make demo`: the whole of Plimsoll on this machine, without a GPU, in a few minutes."""
