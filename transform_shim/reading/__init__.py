"""From table files to frames, with the types of the manifest."""
