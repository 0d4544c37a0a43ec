"""The HTTP API: routes, validation of requests and the form of responses. It runs no job itself."""
