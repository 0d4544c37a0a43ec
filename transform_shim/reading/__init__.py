"""From table files to frames, by what the manifest says."""
