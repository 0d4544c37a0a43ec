"""Table files in other forms than the formats of jobs: compressed files, JSON arrays and Excel workbooks."""
