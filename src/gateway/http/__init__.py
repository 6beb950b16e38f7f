"""HTTP endpoints, one module per family, and the server in front of them. Thin: they read, hand over, and answer."""
