"""The packed encoder: one definition for training, export and the PyTorch fallback.

Importing this package imports neither torch nor transformers; `packing` and `config` need only numpy.
"""
