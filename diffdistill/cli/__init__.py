"""The command line; everything follows from the table in commands.py."""
