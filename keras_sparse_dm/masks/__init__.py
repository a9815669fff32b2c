"""Masks as arrays: selection, drop and grow, structures, densities and encodings.

Nothing here depends on layers, models or optimizers. `distributions` needs only NumPy.
"""
