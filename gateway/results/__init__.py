"""Results of transforms for a person to look at: read a file, show it, compare it with another one."""
