"""The control socket: HTTP on a unix socket in the runtime directory."""
