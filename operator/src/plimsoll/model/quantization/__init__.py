"""Quantized checkpoints: what stands in the files for one matrix, by `quantization_config`.

config.py      quantization_config → Scheme: which matrices are packed, and how
packing.py     Packing: the tensors that one packed matrix becomes
companions.py  the other way round: which matrix a stored tensor belongs to, by its name
"""
