"""The subcommands of `transform-gateway`, one module each; they are clients and import nothing of the server."""
