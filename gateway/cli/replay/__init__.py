"""`transform-gateway replay`: run a failed job again from its bundle."""
