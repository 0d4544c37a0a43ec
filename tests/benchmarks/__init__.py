"""The benchmark behind `make bench`: the gateway beside the subprocess design. No test times anything."""
