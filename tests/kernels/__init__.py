"""Kernels that misbehave on purpose: small real processes that speak the protocol, up to where they do not."""
