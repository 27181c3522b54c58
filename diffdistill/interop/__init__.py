"""Weights that others trained, from their files into our trees."""
