"""The companion of a notebook's kernel: a process of the user's own, outside of the sandbox, that the kernel asks for
tables (files, URLs, a live Metabase) and for runs through a real gateway. See `kernel_spec.companion` for how it lives.
"""
