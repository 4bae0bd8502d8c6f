"""HTTP of the web process: protocol, handler, middleware, admission control and file responses."""
