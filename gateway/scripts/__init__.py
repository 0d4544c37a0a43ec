"""Scripts and notebooks with transforms: read them, check them without running them, and write new ones.

Only the command line uses it; nothing here runs a user's code.
"""
