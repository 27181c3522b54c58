"""The recipes: one file per data set, `recipes.py` for what papers share."""
