"""What a client may ask the running daemon: HTTP on a unix socket."""
