"""Commands about the installation: packages, shell completion, service units."""
