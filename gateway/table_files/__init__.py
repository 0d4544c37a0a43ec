"""Table files as people have them: compressed, JSON arrays and Excel workbooks besides the formats of jobs."""
