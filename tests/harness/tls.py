"""A TLS server's context for tests. The key is public and protects nothing."""

import ssl
import tempfile

_SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQggD+3pD0cpb01tDwY
pLlurvK0Cohd65Xs9pgnnIMF+VmhRANCAARSLLImmIoAUabmB1ADYtr48MvABfyh
HmbzbGQsIsYPW139BZV9GfQk/136wm1eZEBhlA1IEOJsmjJtJ/yKYxMv
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBgDCCASWgAwIBAgIUSnuZfBojNTFJ6ILsKeSnyT7VMtgwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNjA4MTUyMVoYDzIxMjYxMTAy
MDgxNTIxWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARSLLImmIoAUabmB1ADYtr48MvABfyhHmbzbGQsIsYPW139BZV9GfQk
/136wm1eZEBhlA1IEOJsmjJtJ/yKYxMvo1MwUTAdBgNVHQ4EFgQUEzEZReWeox3R
zOthu/xKRk3HwOUwHwYDVR0jBBgwFoAUEzEZReWeox3RzOthu/xKRk3HwOUwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAhHaA9UWg74B+/DCpecj5
OqCpBJJGvUBAcAqQf8z9h00CIQDleCLv7eEfIYC1xWS/fF9XnhTEq/w5QTaIgsqS
VH19Ig==
-----END CERTIFICATE-----
"""


def server_context() -> ssl.SSLContext:
    """A context with a self-signed certificate for ``localhost``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(_SELF_SIGNED)
        file.flush()
        context.load_cert_chain(file.name)
    return context
