"""Create a small image without a registry: busybox, two users, and a web server."""

# ruff: noqa: S603 - busybox is run from the path where we found it

from __future__ import annotations

import hashlib
import http.client
import io
import json
import subprocess
import tarfile
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import quote, urlencode

from scripts import debian
from scripts.unixhttp import Answer, request

if TYPE_CHECKING:
    from collections.abc import Sequence

AGENT = 10001
DEMO_IMAGE = "reconciler-demo:latest"
TEST_IMAGE = "reconciler-test:latest"
_LABEL = "io.sandbox-reconciler.image-digest"
_PULL_TIMEOUT = 300

_PASSWD = f"root:x:0:0:root:/root:/bin/sh\nagent:x:{AGENT}:{AGENT}:agent:/home/agent:/bin/sh\n"
_GROUP = f"root:x:0:\nagent:x:{AGENT}:\n"
# A waiting shell as process 1 exits at once on SIGTERM; httpd alone would not.
_SERVE = """\
#!/bin/sh
# serve PORT...: answer HTTP on each port from /www until told to end
trap 'exit 0' TERM INT
for port in "$@"; do httpd -f -p "$port" -h /www & done
echo "serving on $*"
wait
"""
_INDEX = "<!doctype html><title>sandbox</title><p>A sandbox answers.</p>\n"


class Entry(NamedTuple):
    """One file, folder or link of the image."""

    name: str
    content: bytes | None = None
    mode: int = 0o755
    owner: int = 0
    link: str = ""


def ensure_image(host: str, name: str) -> None:
    """Create the image unless the engine has the same one."""
    busybox = debian.static_busybox()
    tree = _overlay() if busybox is None else _overlay() + _userland(busybox)
    archive = _tar(tree)
    digest = hashlib.sha256(archive).hexdigest()
    if _digest(host, name) == digest:
        return
    if busybox is None:
        _build(host, name, digest, tree)
    else:
        changes = ('CMD ["serve", "8000"]', "ENV PATH=/bin", f"LABEL {_LABEL}={digest}")
        import_image(host, name, archive, changes)


def import_image(
    host: str, name: str, archive: bytes | BinaryIO, changes: Sequence[str] = ()
) -> None:
    """Import a tar of a root file system as an image, with the Dockerfile lines of `changes`."""
    repository, _, tag = name.partition(":")
    query = [("fromSrc", "-"), ("repo", repository), ("tag", tag or "latest")]
    query += [("changes", change) for change in changes]
    path = f"/images/create?{urlencode(query)}"
    _check(
        request(
            host, "POST", path, archive, content_type="application/x-tar", timeout=_PULL_TIMEOUT
        )
    )


def _build(host: str, name: str, digest: str, tree: list[Entry]) -> None:
    """Build on the public busybox image, which the engine pulls."""
    lines = ["FROM busybox", "COPY root /", 'CMD ["serve", "8000"]', f"LABEL {_LABEL}={digest}"]
    dockerfile = Entry("Dockerfile", "\n".join(lines).encode(), 0o644)
    context = _tar([dockerfile, *(entry._replace(name=f"root/{entry.name}") for entry in tree)])
    debian.say(f"no static busybox here: the engine pulls the image busybox for {name}")
    path = f"/build?{urlencode({'t': name, 'rm': '1'})}"
    _check(
        request(
            host, "POST", path, context, content_type="application/x-tar", timeout=_PULL_TIMEOUT
        )
    )


def _check(answer: Answer) -> None:
    """Raise on failure, which may also be the last line of a successful response."""
    lines = [json.loads(line) for line in answer.body.splitlines() if line.strip()]
    errors = [line["error"] for line in lines if "error" in line]
    if answer.status != http.client.OK or errors:
        raise RuntimeError(
            f"the engine cannot create the image: {errors or lines or answer.status}"
        )


def _digest(host: str, name: str) -> str | None:
    answer = request(host, "GET", f"/images/{quote(name)}/json")
    if answer.status != http.client.OK:
        return None
    labels = answer.json()["Config"]["Labels"] or {}
    return labels.get(_LABEL)


def _userland(busybox: str) -> list[Entry]:
    listing = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    with open(busybox, "rb") as file:  # noqa: PTH123
        binary = Entry("bin/busybox", file.read())
    names = sorted(set(listing.stdout.split()) - {"busybox"})
    return [binary, *(Entry(f"bin/{name}", link="busybox") for name in names)]


def _overlay() -> list[Entry]:
    return [
        Entry("bin"),
        Entry("bin/serve", _SERVE.encode()),
        Entry("etc"),
        Entry("etc/passwd", _PASSWD.encode(), 0o644),
        Entry("etc/group", _GROUP.encode(), 0o644),
        Entry("root", mode=0o700),
        Entry("home"),
        Entry("home/agent", owner=AGENT),
        Entry("tmp", mode=0o1777),
        Entry("www", mode=0o777, owner=AGENT),
        Entry("www/index.html", _INDEX.encode(), 0o666, AGENT),
        Entry("www/health", b"ok\n", 0o666, AGENT),
    ]


def _tar(tree: list[Entry]) -> bytes:
    """Pack the tree; the same tree gives the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in tree:
            archive.addfile(_header(entry), io.BytesIO(entry.content or b""))
    return buffer.getvalue()


def _header(entry: Entry) -> tarfile.TarInfo:
    header = tarfile.TarInfo(entry.name)
    header.mode, header.uid, header.gid = entry.mode, entry.owner, entry.owner
    if entry.link:
        header.type, header.linkname = tarfile.SYMTYPE, entry.link
    elif entry.content is None:
        header.type = tarfile.DIRTYPE
    else:
        header.size = len(entry.content)
    return header
