import socket
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from scripts import bridge
from scripts.engine import PrivateEngine
from tests.harness.docker import Docker, DockerError, labels
from tests.harness.instance import Instance, claim_ports
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.engine
StartEngine = Callable[..., PrivateEngine]


def _answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.read() == b"ok\n"
    except OSError:
        return False


def test_two_engines_publish_ports_side_by_side(start_engine: StartEngine) -> None:
    engines = [start_engine(), start_engine()]
    with claim_ports() as ports:
        for engine, port in zip(engines, ports, strict=False):
            Docker(engine.host).run("web", ports={8000: port})
        for port in ports[:2]:
            wait_until(lambda port=port: _answers(port))
        assert [Docker(engine.host).names() for engine in engines] == [["web"], ["web"]]
        engines[0].destroy()
        assert _answers(ports[1])


def test_destroy_leaves_nothing_behind(start_engine: StartEngine) -> None:
    engine = start_engine()
    docker = Docker(engine.host)
    docker.create_network("net")
    docker.run("web")
    docker.run("frozen", host_config={"NetworkMode": "net"})
    docker.pause("frozen")
    networks = engine._networks()
    # Not the names: another engine may have taken one of them since.
    bridges = {socket.if_nametoindex(name) for name in (str(engine._read_bridge()), *networks)}
    engine.kill()
    engine.destroy()
    assert not engine.directory.exists()
    assert len(networks) == 1
    assert not bridges & {index for index, _ in socket.if_nameindex()}
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(engine.directory) not in mounts


def test_a_restart_keeps_containers_and_ends_them(start_engine: StartEngine) -> None:
    engine = start_engine()
    docker = Docker(engine.host)
    docker.run("web")
    foreign = {name for name in bridge.names() if name.startswith("docker")}
    engine.restart()
    assert foreign <= bridge.names()
    assert docker.state("web") == "exited"
    docker.start("web")
    engine.kill()
    with pytest.raises(OSError, match=r".*"):
        docker.info()
    engine.start()
    assert docker.state("web") == "exited"


@pytest.mark.parametrize("end", [PrivateEngine.terminate, PrivateEngine.kill])
def test_live_restore_keeps_containers_running(
    start_engine: StartEngine, end: Callable[[PrivateEngine], None]
) -> None:
    engine = start_engine(live_restore=True)
    docker = Docker(engine.host)
    docker.run("web")
    pid = docker.inspect("web")["State"]["Pid"]
    end(engine)
    engine.start()
    assert docker.inspect("web")["State"]["Pid"] == pid


def test_the_image_has_what_tests_need(instance: Instance) -> None:
    docker = instance.docker
    name = instance.container("alice")
    docker.run(name, labels=labels(instance.name, "alice"), ports={8000: instance.ports[0]})
    wait_until(lambda: _answers(instance.ports[0]))
    assert docker.exec(name, "id", "-u", user="agent") == (0, "10001\n")
    assert docker.exec(name, "sh", "-c", "exit 3")[0] == 3
    assert docker.exec(name, "which", "sh", "nc", "httpd", "sleep")[0] == 0
    assert "serving on 8000" in docker.logs(name)
    docker.stop(name, timeout=30)
    assert docker.inspect(name)["State"]["ExitCode"] == 0


def test_only_the_instance_is_purged(engine: Docker, instance: Instance) -> None:
    own = labels(instance.name, "alice")
    foreign = f"{instance.prefix}foreign"
    engine.run(instance.container("alice"), labels=own)
    engine.create_volume(instance.volume("alice"), own)
    engine.create_network(f"{instance.prefix}net", own)
    engine.create(foreign)
    try:
        engine.purge(instance.name)
        assert engine.names(instance.name) == []
        assert engine.volumes(instance.name) == {}
        assert engine.networks(instance.name) == {}
        assert engine.state(foreign) == "created"
    finally:
        engine.rm(foreign)
    with pytest.raises(DockerError, match="404"):
        engine.inspect(foreign)
