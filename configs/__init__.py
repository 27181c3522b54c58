"""The recipes, one file per data set; recipes/ has the papers' settings."""
