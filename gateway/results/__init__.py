"""Results of transforms on a terminal: read a file, show it, compare it with another one."""
