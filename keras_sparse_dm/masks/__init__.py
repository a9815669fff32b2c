"""Masks as arrays: exact selection, drop and grow, structures and density distributions.

Nothing here knows a layer, a model or an optimizer. `distributions` needs only NumPy.
"""
