"""The companion of a notebook's kernel: a process of the user outside of the sandbox.

It fetches tables (files, URLs, a live Metabase) for the kernel and runs transforms on a real gateway.
`kernel_spec.client.companion` starts and ends it.
"""
