"""From the returned frame to the output file and its manifest."""
