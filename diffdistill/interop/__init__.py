"""Imports weights that others trained, and exports weights for others."""
