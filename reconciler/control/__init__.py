"""What a client can ask the running daemon: an HTTP API on a unix socket."""
